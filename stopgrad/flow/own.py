"""A loss that is measured in its own backward: what arrives, and where it became zero, without a second pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stopgrad.cuts.torch_internals import backward_task, record_function, version_of, without_overrides
from stopgrad.flow import measure
from stopgrad.flow.graph import ordered
from stopgrad.flow.ops import LOOKS
from stopgrad.flow.zeros import blamed, leading

_T: Any = Tensor
# What may run between the report of a loss and its backward: it changes nothing that the backward would find.
QUIET = {*LOOKS, *record_function, _T.grad.__get__, _T.grad.__set__, _T.item, _T.__float__, _T.tolist}


class Awaited:
    """A loss that was reported, and is measured in its own backward if that comes next; else at once, by a probe.

    Args:
        probe: measures it now.
        measure_in: runs a call that is its backward; returns what that returned, and what enters what was measured.
        unseen: called in a backward that comes to the loss and that no function mode saw, before any of it is freed.
    """

    def __init__(
        self,
        loss: Tensor,
        probe: Callable[[], None],
        measure_in: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]],
        unseen: Callable[[], None],
    ) -> None:
        self._loss, self._probe, self._measure_in, self._unseen = loss, probe, measure_in, unseen
        self._enter: Callable[[], None] | None = None
        root: Any = loss.grad_fn
        self._guard = root.register_prehook(self._passed)

    def _passed(self, _: Any) -> None:
        self._guard.remove()
        self._unseen()

    def measure(self) -> None:
        """Nothing waits any longer."""
        self._guard.remove()
        (self._enter or self._probe)()

    def measure_elsewhere(self, run: Callable[[], Any]) -> None:
        """Measure in a call, in another thread than that which may enter it."""
        _, self._enter = self._measure_in(run)

    def own(self, func: Any, args: Any, kwargs: Any) -> Callable[[], Any] | None:
        """What is to run in place of a call that is a backward of this loss alone, times 1 and to all leaves."""
        if func not in (Tensor.backward, torch.autograd.backward) or len(args) != 1 or self._enter is not None:
            return None
        alone = args[0] is self._loss or (isinstance(args[0], tuple) and [*map(id, args[0])] == [id(self._loss)])
        plain = all(value is None or value is False for key, value in kwargs.items() if key != "retain_graph")
        return partial(self._run, partial(func, *args, **kwargs)) if alone and plain else None

    def _run(self, run: Callable[[], Any]) -> Any:
        self._guard.remove()
        result, enter = self._measure_in(run)
        enter()
        return result


class OwnBackward:
    """Hooks on a loss's graph, while its backward, or a probe, runs inside.

    Args:
        asked: the leaves and other tensors at which to measure.
    """

    def __init__(self, loss: Tensor, asked: Sequence[Tensor]) -> None:
        self._loss, self._asked = loss, asked
        self._task, self._order = -1, []
        self._arrived: dict[int, Tensor] = {}
        self._passed: dict[Any, tuple[list[Tensor | None], list[Tensor | None]]] = {}  # passed on, and got, by a node
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}  # a gradient, its version, and its norm
        self._handles: list[Any] = []

    def __enter__(self) -> OwnBackward:
        with without_overrides():
            root: Any = self._loss.grad_fn
            self._handles.append(root.register_prehook(self._begin))
            self._handles += [t.register_hook(partial(self._arrives, id(t))) for t in self._asked]
            self._order = ordered(root)
            inner = [node for node in self._order if getattr(node, "variable", None) is None]
            self._handles += [node.register_hook(partial(self._passes, node)) for node in inner]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._known.clear()

    def _begin(self, _: Any) -> None:
        self._task = backward_task()

    def _arrives(self, key: int, grad: Tensor | None) -> None:
        if backward_task() == self._task and grad is not None:  # else of a backward that a node runs inside
            self._arrived[key] = self._norm(grad)

    def _passes(self, node: Any, passed: Sequence[Tensor | None], got: Sequence[Tensor | None]) -> None:
        passed, got = ([None if grad is None else self._norm(grad) for grad in grads] for grads in (passed, got))
        self._passed[node] = passed, got

    def _norm(self, grad: Tensor) -> Tensor:
        """The norm of a gradient, once: what a node passes on is mostly what the next one gets."""
        with without_overrides():
            ref, version, norm = self._known.get(id(grad), (None, 0, grad))
            if ref is None or ref() is not grad or version != version_of(grad):
                norm = measure.norm(grad)
                self._known[id(grad)] = weakref.ref(grad), version_of(grad), norm
        return norm

    def norms(self) -> list[float | None]:
        """The norm of what arrived at each tensor that was asked for; None where nothing did."""
        return measure.numbers([self._arrived.get(id(t)) for t in self._asked])

    def died(self, targets: Sequence[Tensor], floor: float) -> list[Any]:
        """The nodes that got a gradient and passed on to the tensors none larger than ``floor``, nearest first."""
        ways, died = leading(self._order, targets), set()
        for node, edges in ways.items():
            passed, got = self._passed.get(node, ((), ()))
            if edges and any(n is not None and float(n) > floor for n in got):
                told = (passed[i] for i, _ in edges)
                if not all(n is not None and float(n) > floor for n in told):
                    died.add(node)
        return blamed(died, ways)
