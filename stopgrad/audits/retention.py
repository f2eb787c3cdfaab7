"""Which kept tensors hold an autograd graph, how large it is, and whether saved data was written to behind its back."""

from __future__ import annotations

import dataclasses
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stopgrad.cuts.torch_internals import saved_tensors, version_of
from stopgrad.flow.frames import user_line
from stopgrad.flow.ops import storage_of, written_by
from stopgrad.flow.values import place


@dataclasses.dataclass(frozen=True)
class GraphSize:
    """The graph behind some tensors.

    Attributes:
        nodes: autograd nodes, each once.
        bytes: memory of the tensors saved for backward, each storage once; what a checkpoint recomputes counts 0.
        spent: a backward has freed the saved tensors; the nodes are still there.
    """

    nodes: int
    bytes: int
    spent: bool


def graph_size(*tensors: Tensor, exclude: Iterable[Tensor] = ()) -> GraphSize:
    """Measure the graph that the tensors keep alive. Saved tensors of ``exclude`` (parameters) are not counted.

    Nothing is recomputed: of what pack hooks have stored, only tensors are counted.
    """
    storages: dict[int, int] = {}
    ignored = {storage_of(t) for t in exclude}
    seen: set[Any] = {t.grad_fn for t in tensors if t.grad_fn is not None}
    stack, spent = list(seen), False
    while stack:
        node = stack.pop()
        for saved in saved_tensors(node):
            spent |= saved is None
            storages.update((storage_of(t), t.untyped_storage().nbytes()) for t in saved or ())
        fresh = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= fresh
        stack += fresh
    return GraphSize(len(seen), sum(size for key, size in storages.items() if key not in ignored), spent)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Tensors with a graph that one place keeps.

    Attributes:
        path: where, such as ``module.history`` for all tensors in a list.
        tensors: how many there are.
        nodes, bytes, spent: as in :class:`GraphSize`.
    """

    path: str
    tensors: int
    nodes: int
    bytes: int
    spent: bool

    def __str__(self) -> str:
        count = "a tensor" if self.tensors == 1 else f"{self.tensors} tensors"
        state = "spent: a backward freed what was saved" if self.spent else f"live: {self.bytes / 1e6:.3g} MB saved"
        return f"{self.path} keeps {count} with a graph of {self.nodes} nodes ({state})"


def kept_graphs(roots: Mapping[str, Any], exclude: Iterable[Tensor] = ()) -> list[Kept]:
    """Find tensors with a graph in known containers: attributes of modules and objects, lists, dicts, dataclasses.

    Args:
        roots: ``{name: object}``; modules are searched with their submodules, other objects one level deep.
        exclude: parameters, whose memory nobody pins.
    """
    found: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Any, bool]] = [(name, root, True) for name, root in roots.items()]
    while stack:
        path, item, is_root = stack.pop()
        if isinstance(item, Tensor):
            if item.grad_fn is not None:
                found.setdefault(path, []).append(item)
        elif id(item) not in seen:
            seen.add(id(item))
            stack += [(inner, child, False) for inner, child in _children(path, item, is_root)]
    exclude = list(exclude)
    sizes = {path: (len(tensors), graph_size(*tensors, exclude=exclude)) for path, tensors in found.items()}
    return [Kept(path, count, size.nodes, size.bytes, size.spent) for path, (count, size) in sorted(sizes.items())]


def _children(path: str, item: Any, is_root: bool) -> Iterator[tuple[str, Any]]:
    """Elements of a list share its path; entries of a dict and attributes have their own."""
    if isinstance(item, Mapping):
        yield from ((f"{path}[{key!r}]", value) for key, value in item.items())
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield from ((path, value) for value in item)
    elif isinstance(item, nn.Module):
        own = vars(item).keys() - vars(nn.Module()).keys()  # what any module keeps is seen below, by its public names
        yield from ((f"{path}.{name}", child) for name, child in item.named_children())
        yield from ((f"{path}.{name}", vars(item)[name]) for name in sorted(own))
        yield from ((f"{path}.{name}", value) for name, value in item.named_buffers(recurse=False))
    elif dataclasses.is_dataclass(item) or (is_root and hasattr(item, "__dict__")):
        yield from ((f"{path}.{name}", value) for name, value in vars(item).items())


def growth(before: Collection[Kept], now: Collection[Kept]) -> list[str]:
    """What holds more nodes than before, in words: a running sum and a growing list are told apart."""
    earlier = {kept.path: kept for kept in before}
    lines = []
    for kept in now:
        old = earlier.get(kept.path)
        if old is None or kept.nodes <= old.nodes:
            continue
        if kept.tensors == old.tensors:
            why = "each step adds its graph to it, as total += loss does; add loss.detach() or loss.item()"
        else:
            why = f"it grew by {kept.tensors - old.tensors} tensors; keep them detached"
        lines.append(f"{kept}, {kept.nodes - old.nodes} nodes more than before: {why}")
    return lines


class GraphRetained(AssertionError):
    """Something keeps the graphs of more and more steps alive."""


class SavedDataCorrupted(RuntimeError):
    """Data that a backward needs was changed; PyTorch would have computed wrong gradients without a word."""


@dataclasses.dataclass(eq=False)
class _Saved:
    """A tensor saved for backward; ``tensor`` is an alias that shares its version counter."""

    tensor: Tensor
    version: int
    write: str = ""

    def overlaps(self, other: Tensor) -> bool:
        (start, end), (first, last) = _extent(self.tensor), _extent(other)
        return start < last and first < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


class guard_saved(TorchFunctionMode):
    """Inside, a backward that would use overwritten saved data raises, and the error names the line of the write::

        with guard_saved():
            out = a.sigmoid()
            out.data.zero_()      # silent in PyTorch: .data drops the version counter
            out.sum().backward()  # SavedDataCorrupted: ... zero_ at file.py:3

    Writes by PyTorch operations are seen, through any alias; those by NumPy or into a raw storage are not. Run forward
    and backward inside. The statistics of BatchNorm are no saved data and no false alarm.

    Raises:
        SavedDataCorrupted: in backward.
    """

    def __enter__(self) -> guard_saved:
        self._live: dict[int, weakref.WeakSet[_Saved]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._hooks.__exit__(*exc)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach(), version_of(tensor))
        self._live.setdefault(storage_of(tensor), weakref.WeakSet()).add(saved)
        return saved

    def _unpack(self, saved: _Saved) -> Tensor:
        if saved.write or version_of(saved.tensor) != saved.version:
            where = saved.write or "an operation that was not seen"
            raise SavedDataCorrupted(
                f"a tensor of shape {tuple(saved.tensor.shape)} that backward needs was overwritten by {where}; "
                "write to a clone() instead"
            )
        return saved.tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for target in written_by(func, args, kwargs) or ():
            for saved in self._live.get(storage_of(target), ()):
                if saved.overlaps(target):
                    saved.write = saved.write or f"{func.__name__} at {place(*user_line())}"
        return result
