"""Graphs that outlive their backward, and saved values that were written to before it."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stopgrad.cuts.torch_internals import saved_tensors, sequence_number, top_mode, version_of
from stopgrad.flow.frames import user_line
from stopgrad.flow.graph import MOST_NODES
from stopgrad.flow.ops import leaves_of
from stopgrad.watch.moves import equal, sample

Line = tuple[str, int]
REMEMBERED = 32  # backwards whose graphs are compared with later ones


def nodes_of(tensor: Tensor) -> list[Any]:
    """The nodes behind a tensor, without those of the leaves; [] where there are too many to look at."""
    if tensor.grad_fn is None:
        return []
    seen, stack = {tensor.grad_fn}, [tensor.grad_fn]
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen and not hasattr(child, "variable"):
                seen.add(child)
                stack.append(child)
        if len(seen) > MOST_NODES:
            return []
    return list(seen)


@dataclass(eq=False)
class Graph:
    """The graph of one backward, by autograd's numbers of its nodes."""

    loss: str
    line: Line
    numbers: frozenset[int]
    retained: bool
    needed: bool = False


@dataclass
class Retained:
    """What became of the graphs that one line kept with ``retain_graph=True``.

    Attributes:
        times: so many, of those that were followed by another backward from this line.
        needed: for so many of them a later backward went through the same nodes.
        sizes: the nodes of each graph, where each is larger than the one before it and runs into it.
    """

    loss: str
    times: int = 0
    needed: int = 0
    sizes: list[int] = field(default_factory=list)


class Graphs:
    """The graphs of the last backwards of the measured cycles."""

    def __init__(self) -> None:
        self.retained: dict[Line, Retained] = {}
        self._last: deque[Graph] = deque(maxlen=REMEMBERED)

    def backward(self, loss: str, line: Line, nodes: list[Any], retained: bool) -> frozenset[int]:
        numbers = self.used(nodes)
        before = next((g for g in reversed(self._last) if g.line == line), None)
        if before is not None and before.retained:
            entry = self.retained.setdefault(line, Retained(loss))
            entry.times += 1
            entry.needed += before.needed
            if len(before.numbers) < len(numbers) and not before.numbers.isdisjoint(numbers):
                entry.sizes = [*(entry.sizes or [len(before.numbers)]), len(numbers)]
            else:
                entry.sizes.clear()
        self._last.append(Graph(loss, line, numbers, retained))
        return numbers

    def last(self, count: int) -> list[frozenset[int]]:
        """The numbers of the last few graphs."""
        return [graph.numbers for graph in list(self._last)[-count:]]

    def used(self, nodes: list[Any]) -> frozenset[int]:
        """The numbers of nodes that a backward, or ``autograd.grad``, is about to go through."""
        numbers = frozenset(sequence_number(node) for node in nodes)
        for graph in self._last:
            graph.needed |= not graph.numbers.isdisjoint(numbers)
        return numbers


class Saved(TorchFunctionMode):
    """Samples what is handed to where autograd does not see it: a backward that needs it is told of a write.

    A write through ``.data`` or NumPy leaves the version as it was. A parameter is sampled again at each use: what is
    written between two steps is no fault.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[int, tuple[weakref.ref[Tensor], Tensor, int]] = {}  # by address
        self._aliases: dict[int, tuple[str, Line]] = {}  # address -> how it left autograd's sight, and where
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused and func in _ALIASES and args and isinstance(args[0], Tensor):
            self._leaves(args[0], _ALIASES[func])
        result = func(*args, **(kwargs or {}))
        if not self.paused and self._results and func not in _ALIASES:
            for tensor in leaves_of(args):
                if tensor.is_leaf and tensor.requires_grad and _address(tensor) in self._results:
                    self._note(tensor)
        return result

    def _leaves(self, tensor: Tensor, how: str) -> None:
        address = _address(tensor)
        if tensor.requires_grad and (address not in self._results or self._results[address][0]() is not tensor):
            self._note(tensor)
        if how != "detach" or address not in self._aliases:  # a write through detach() alone is seen
            self._aliases[address] = how, user_line()

    def off(self) -> None:
        if top_mode() is self:
            super().__exit__(None, None, None)
        self.paused = True

    def _note(self, tensor: Tensor) -> None:
        values = sample(tensor) if type(tensor) in (Tensor, nn.Parameter) else None
        if values is not None:
            self._results[_address(tensor)] = weakref.ref(tensor), values, version_of(tensor)

    def changed(self, nodes: list[Any]) -> list[tuple[str, Line]]:
        """How and where something that these nodes have saved was written to: ``data`` or ``numpy``, and the line."""
        found: dict[tuple[str, Line], None] = {}
        for node in nodes if self._results else ():
            for tensors in saved_tensors(node):
                for tensor in tensors or ():
                    known = self._results.get(_address(tensor))
                    owner = None if known is None else known[0]()
                    if known is None or owner is None or owner.numel() != tensor.numel():
                        continue
                    now = sample(owner)
                    if now is not None and version_of(owner) == known[2] and not equal(known[1], now):
                        found[self._aliases.get(_address(tensor), ("data", ("", 0)))] = None
        return list(found)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # sparse and wrapped tensors have none
        return -id(tensor)


_ALIASES: dict[Any, str] = {
    Tensor.data.__get__: "data",  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.detach: "detach",
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
}
