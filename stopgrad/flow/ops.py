"""What PyTorch's operations do to values: which cut, which escape, which write, which only look at a shape."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stopgrad.cuts.torch_internals import storage_id

_T: Any = torch.Tensor
CUTS: dict[Any, str] = {
    _T.detach: "detach",
    torch.detach: "detach",
    _T.detach_: "detach_",
    torch.detach_: "detach_",
    _T.data.__get__: "data",
    _T.data.__set__: "data",  # pyright: ignore[reportAttributeAccessIssue]
    torch.tensor: "torch.tensor",
    _T.new_tensor: "torch.tensor",
}
ESCAPES: dict[Any, str] = {
    _T.item: "item",
    _T.__float__: "item",
    _T.__int__: "item",
    _T.__index__: "item",
    _T.__complex__: "item",
    _T.tolist: "tolist",
    _T.numpy: "numpy",
    _T.__array__: "numpy",
}
# Operations whose result has the shape of a tensor but not its value, and those that change no value.
VALUELESS = {
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like),
    *(torch.rand_like, torch.randn_like, torch.randint_like),
    *(_T.new_zeros, _T.new_ones, _T.new_empty, _T.new_full, _T.new_empty_strided),
    *(_T.requires_grad_, _T.retain_grad, _T.share_memory_),
    _T.grad.__get__,
    _T.grad.__set__,
}
BACKWARDS = {_T.backward, torch.autograd.backward, torch.autograd.grad}  # may free the graph that they go through
OVERWRITES = {_T.copy_, _T.zero_, _T.fill_, _T.normal_, _T.uniform_, _T.random_, _T.exponential_}  # drop the old value
PAIRWISE = {torch.broadcast_tensors, torch.functional.broadcast_tensors, torch.meshgrid, torch.functional.meshgrid}
NO_WRITE = {_T.detach_, torch.detach_, _T.data.__set__}


# Getters and methods of a tensor that tell no element of it: nothing comes of them.
_LOOKS = ("dtype", "device", "shape", "layout", "ndim", "itemsize", "nbytes", "requires_grad", "is_leaf", "is_nested")
_LOOKS += ("is_sparse", "is_quantized", "is_meta", "is_cpu", "is_cuda")
LOOKS: set[Any] = {getattr(_T, name).__get__ for name in _LOOKS}
LOOKS |= {_T.dim, _T.size, _T.numel, _T.stride, _T.is_contiguous, _T.is_floating_point, _T.is_complex, _T.__len__}

KINDS = {  # what the mode asks first, for every operation
    **dict.fromkeys(VALUELESS, "valueless"),
    **dict.fromkeys(LOOKS, "look"),
    **dict.fromkeys(BACKWARDS, "backward"),
}
_CONTAINERS = (list, tuple, dict)


def leaves_of(tree: Any, kind: type = Tensor) -> list[Any]:
    """All tensors (or numbers) in nested lists, tuples and dicts."""
    if isinstance(tree, kind):
        return [tree]
    found: list[Any] = []
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, _CONTAINERS) else ():
        if isinstance(item, kind):
            found.append(item)
        elif isinstance(item, _CONTAINERS):
            found += leaves_of(item, kind)
    return found


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return getattr(func.__self__, "__name__", name)
    return name.strip("_") if name.startswith("__") else name


def node_name(tensor: Tensor) -> str:
    return tensor.grad_fn.name() if tensor.grad_fn is not None else ""


def graphless_mode() -> str:
    if torch.is_inference_mode_enabled():
        return "inference_mode"
    return "" if torch.is_grad_enabled() else "no_grad"


_TIMES = {_T.div, torch.div, _T.__truediv__, _T.true_divide, torch.true_divide}
_TIMES |= {_T.mul, torch.mul, _T.__mul__, _T.__rmul__}


def changes_nothing(args: Any, kwargs: Any) -> bool:
    """A product with the number 1, or a division by it: trainers divide each loss by the batches they accumulate."""
    by_one = not kwargs and len(args) == 2 and isinstance(args[1], int | float) and args[1] == 1
    return by_one and not args[0].is_leaf


def loses_type(out: Tensor, inputs: Iterable[Tensor]) -> bool:
    """The result is of a type that has no gradient, and what it was computed from is not."""
    return not _differentiable(out) and any(_differentiable(t) for t in inputs)


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def storage_of(tensor: Tensor) -> int:
    """An id of the memory that a tensor shares with its aliases."""
    try:
        return storage_id(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # sparse and wrapped tensors have none
        return -id(tensor)


class Operation(NamedTuple):
    """What is known of an operation before it runs.

    Attributes:
        name: as it is told.
        cut, escape: of its result, or "".
        writes: into its first argument.
        by_number: its second argument may be a number that changes nothing.
        plain: none of these.
    """

    name: str
    cut: str
    escape: str
    writes: bool
    pairwise: bool
    by_number: bool
    plain: bool


@lru_cache(4096)
def operation(func: Any) -> Operation:
    name = getattr(func, "__name__", "")
    writes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or func in NO_WRITE
    cut, escape = CUTS.get(func, ""), ESCAPES.get(func, "")
    special = cut, escape, writes, func in PAIRWISE, func in _TIMES
    return Operation(name_of(func), *special, plain=not any(special))


def written_by(op: Operation, args: Any, kwargs: Any) -> list[Tensor] | None:
    """The tensors that an operation writes into, or None."""
    if kwargs and kwargs.get("out") is not None:
        return leaves_of([kwargs["out"]])
    return leaves_of(args[:1]) if op.writes and args else None
