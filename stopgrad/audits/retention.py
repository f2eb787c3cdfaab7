"""Which kept tensors hold an autograd graph, how large it is, and whether saved data was written to behind its back."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stopgrad.audits.search import search
from stopgrad.cuts.torch_internals import saved_tensors, top_mode, version_of
from stopgrad.flow.frames import user_line
from stopgrad.flow.ops import operation, storage_of, written_by
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
            storages.update((storage_of(t), bytes_of(t)) for t in saved or ())
        fresh = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= fresh
        stack += fresh
    return GraphSize(len(seen), sum(size for key, size in storages.items() if key not in ignored), spent)


def bytes_of(tensor: Tensor) -> int:
    """The memory of a tensor's storage, or of its elements where it has none, as a sparse one."""
    try:
        return tensor.untyped_storage().nbytes()
    except NotImplementedError:
        values = tensor.detach().coalesce().values() if tensor.is_sparse else tensor
        return values.numel() * tensor.element_size()


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


def kept_graphs(
    roots: Mapping[str, Any], exclude: Iterable[Tensor] = (), *, leave: Iterable[object] = (), seconds: float = 2.0
) -> list[Kept]:
    """Find tensors with a graph among all that hangs on the roots, at any depth.

    Searched are attributes of modules, dataclasses and plain objects (slots and class attributes too), lists, tuples,
    sets, deques and dicts, hooks of modules and tensors, gradients, functions with their closures, defaults and the
    containers among the globals that they name, bound methods, ``partial`` and ``lru_cache``. Not searched are running
    generators, tracebacks, NumPy arrays of objects, and what extension types hold.

    Args:
        roots: ``{name: object}``.
        exclude: parameters, whose memory nobody pins.
        leave: objects that are not entered, such as a trainer.
        seconds: how long the search may take. If it is not enough there is a warning, and what was found is returned.
    """
    found = search(roots, leave=leave, seconds=seconds)
    if found.left:
        warnings.warn(unfinished(found.left, seconds), stacklevel=2)
    return measured(found.tensors, exclude)


def unfinished(left: str, seconds: float) -> str:
    """What is said of a search that found no time for the place ``left`` and what comes after it."""
    return (
        f"kept graphs: {seconds:g} s were not enough; not searched: {left} and what comes after it (seconds=, leave=)"
    )


def measured(found: Mapping[str, Collection[Tensor]], exclude: Iterable[Tensor] = ()) -> list[Kept]:
    """The sizes of the graphs that were found, by path."""
    exclude = list(exclude)
    sizes = {path: (len(tensors), graph_size(*tensors, exclude=exclude)) for path, tensors in found.items()}
    return [Kept(path, count, size.nodes, size.bytes, size.spent) for path, (count, size) in sorted(sizes.items())]


def growth(before: Collection[Kept], now: Collection[Kept]) -> list[str]:
    """What holds more nodes than before, in words: a running sum and a growing list are told apart.

    A place that is new has not grown; two or more new ones beside others have (a dict with a key for each step).
    """
    earlier = {kept.path: kept for kept in before}
    lines, fresh = [], {}
    for kept in now:
        old = earlier.get(kept.path)
        if old is None:
            fresh.setdefault(_above(kept.path), []).append(kept)
        elif kept.nodes > old.nodes:
            if kept.tensors == old.tensors:
                why = "each step adds its graph to it, as total += loss does; add loss.detach() or loss.item()"
            else:
                why = f"it grew by {kept.tensors - old.tensors} tensors; keep them detached"
            lines.append(f"{kept}, {kept.nodes - old.nodes} nodes more than before: {why}")
    for above, new in fresh.items():
        if len(new) > 1 and any(_above(path) == above for path in earlier):
            lines.append(f"{new[-1]}, and {above} has {len(new)} such entries more than before; keep them detached")
    return lines


def _above(path: str) -> str:
    """The container in which a path's last step lies."""
    return path[: max(path.rfind("["), path.rfind("."), 0)] or path


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
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        try:
            self._off()
        finally:
            self._off()  # what an exception (Ctrl-C) kept from it

    def _off(self) -> None:
        try:
            if top_mode() is self:
                super().__exit__(None, None, None)
        finally:
            if self._hooks is not None:
                self._hooks = self._hooks.__exit__()  # None: off, and not a second time

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
        for target in written_by(operation(func), args, kwargs) or ():
            for saved in self._live.get(storage_of(target), ()):
                if saved.overlaps(target):
                    saved.write = saved.write or f"{func.__name__} at {place(*user_line())}"
        return result
