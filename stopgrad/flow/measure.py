"""Gradients measured so that nothing shows it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stopgrad.cuts.torch_internals import foreach_norm, post_accumulate_hooks, run_backward, without_overrides
from stopgrad.flow.graph import Reach, Walk
from stopgrad.flow.lookup import named_modules

_PIECE = 1 << 20  # elements
_CLEAR = 1e-12  # no norm with an element above it is zero, though its squares are summed in single precision


def _plain(grad: Tensor) -> Tensor:
    grad = grad.detach() if grad.requires_grad else grad
    if grad.layout is torch.strided:
        return grad
    return grad.coalesce().values() if grad.is_sparse else grad.to_dense()


def _norms(grads: Sequence[Tensor]) -> Sequence[Tensor]:
    if grads[0].dtype.itemsize > 2:
        return foreach_norm(grads, 2)
    return [_half_norm(grad) for grad in grads]


def _half_norm(grad: Tensor) -> Tensor:
    """In single precision; a large one in pieces, since torch copies what it converts."""
    if grad.numel() <= _PIECE:
        return torch.linalg.vector_norm(grad, dtype=torch.float32)
    pieces = grad.split(max(1, len(grad) * _PIECE // grad.numel()))
    norms = grad.new_empty(len(pieces), dtype=torch.float32)
    for i, piece in enumerate(pieces):
        norms[i] = torch.linalg.vector_norm(piece, dtype=torch.float32)
    return norms.norm()


def norm(grad: Tensor) -> Tensor:
    """The L2 norm of a gradient, dense or sparse, as a tensor (no synchronisation)."""
    return _norms([_plain(grad)])[0]


def norms_of(grads: Sequence[Tensor | None]) -> list[float | None]:
    """The norm of each gradient, as numbers: one synchronisation for all that are alike."""
    norms: list[Tensor | None] = [None] * len(grads)
    alike: dict[Any, list[tuple[int, Tensor]]] = {}
    with without_overrides():  # what the audit does itself is nobody's operation
        for i, grad in enumerate(grads):
            if grad is not None:
                is_plain = grad.layout is torch.strided and not grad.requires_grad
                plain = grad if is_plain else _plain(grad)
                alike.setdefault((plain.dtype, plain.device), []).append((i, plain))
        for group in alike.values():
            for (i, _), norm in zip(group, _norms([grad for _, grad in group]), strict=True):
                norms[i] = norm
    return numbers(norms)


def numbers(norms: Sequence[Tensor | None]) -> list[float | None]:
    """Norms as numbers: one synchronisation for all that are alike."""
    found: list[float | None] = [None] * len(norms)
    alike: dict[Any, list[int]] = {}
    with without_overrides():
        for i, norm in enumerate(norms):
            if norm is not None:
                alike.setdefault((norm.dtype, norm.device), []).append(i)
        for group in alike.values():
            for i, number in zip(
                group, torch.stack([n for i in group if (n := norms[i]) is not None]).tolist(), strict=True
            ):
                found[i] = number
    return found


def zero_parameters(parameters: Iterable[Tensor]) -> set[int]:
    """The ids of those that require grad and are all zeros: one element tells of most that they are not."""
    plain = [p for p in parameters if p.requires_grad and type(p) in (nn.Parameter, Tensor) and p.is_floating_point()]
    plain = [p for p in plain if not p.is_meta and p.numel()]
    with without_overrides():
        first = numbers([p.detach().as_strided((), ()) if p.layout is torch.strided else None for p in plain])
    plain = [p for p, number in zip(plain, first, strict=True) if number is None or abs(number) <= _CLEAR]
    return {id(p) for p, length in zip(plain, norms_of(plain), strict=True) if length == 0}


def gradients(
    name: str, loss: Tensor, tensors: Sequence[Tensor], others: Mapping[int, Tensor], reach: Reach | None
) -> Sequence[Tensor | None] | None:
    """``loss``'s gradient at each tensor, None where none arrives. No ``.grad`` changes.

    Args:
        name: the loss's name, for errors.
        others: leaf tensors besides ``tensors`` that a full backward would also reach.
        reach: what lies behind the loss, or None if that is not known.

    Returns:
        None if it cannot be measured without a trace: under DDP with ``static_graph``, and under a reentrant checkpoint
        in DDP or beside hooks that run after accumulation.

    Raises:
        RuntimeError: the graph was freed by a backward.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if (reach is not None and reach.static_ddp) or (reach is None and distributed):
        return None
    try:
        if reach is not None and reach.reentrant:
            return _by_backward(loss, tensors, others)
        # As torch.autograd.grad does, which would take the audit's mode off: what a checkpoint runs again is watched.
        with without_overrides():
            first = (torch.ones_like(loss),)
        return run_backward((loss,), first, True, False, tuple(tensors), True, accumulate_grad=False) if tensors else ()
    except RuntimeError as error:
        if "use_reentrant" in str(error):  # a reentrant checkpoint refuses autograd.grad
            return _by_backward(loss, tensors, others)
        if "second time" not in str(error):
            raise
        raise RuntimeError(f"loss {name!r}: its graph was freed; report it before its backward") from None


def _by_backward(loss: Tensor, tensors: Sequence[Tensor], others: Mapping[int, Tensor]) -> list[Tensor | None] | None:
    """A real backward with every ``.grad`` put aside."""
    leaves = list({**Walk(loss).leaves, **others, **{id(t): t for t in tensors if t.is_leaf}}.values())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None  # DDP's hooks would reduce
    if any(post_accumulate_hooks(leaf) for leaf in leaves):
        return None
    kept = [leaf.grad for leaf in leaves]
    caught: dict[int, Tensor] = {}
    handles = [t.register_hook(partial(caught.__setitem__, id(t))) for t in tensors if not t.is_leaf]
    try:
        for leaf in leaves:
            leaf.grad = None
        loss.backward(retain_graph=True)
        return [caught.get(id(t)) if not t.is_leaf else t.grad for t in tensors]
    finally:
        for handle in handles:
            handle.remove()
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad


class Found:
    """What a step may change in some modules besides gradients: buffers, training modes and random state."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        each = dict.fromkeys(inner for module in modules for _, inner in named_modules(module))
        self._modules = list(each)
        self._tensors = list({id(b): b for module in each for b in module.buffers(recurse=False)}.values())
        self._modes: list[bool] = []
        self._buffers: list[Tensor] | None = None
        self._random: Tensor | None = None
        self._device: list[Tensor] | None = None

    def note(self) -> None:
        """Note the training modes and the random state. Buffers are copied by :meth:`copy`, before anything runs."""
        self._modes = [module.training for module in self._modules]
        self._random = torch.get_rng_state()
        on_device = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._device = torch.cuda.get_rng_state_all() if on_device else None
        self._buffers = None

    def copy(self) -> None:
        self._buffers = [b.detach().clone() for b in self._tensors]

    def restore(self) -> None:
        """Undo what changed; nothing did if no operation ran, before which :meth:`copy` would have been called."""
        if self._buffers is None or self._random is None:
            return
        torch.set_rng_state(self._random)
        if self._device is not None:
            torch.cuda.set_rng_state_all(self._device)
        for buffer, before in zip(self._tensors, self._buffers, strict=True):
            if not torch.equal(buffer, before):  # through .data: what a graph has saved of it stays valid
                buffer.data.copy_(before)
        for module, mode in zip(self._modules, self._modes, strict=True):
            if module.training != mode:
                module.training = mode


@contextmanager
def as_found(modules: Sequence[nn.Module], parts: Mapping[str, Sequence[Tensor]] | None = None) -> Iterator[None]:
    """Buffers, training modes and random state are restored at the end; with ``parts``, their grads too."""
    parameters = [t for tensors in (parts or {}).values() for t in tensors]
    grads = [t.grad for t in parameters]
    found = Found(modules)
    found.note()
    found.copy()
    try:
        for t in parameters:
            t.grad = None
        yield
    finally:
        found.restore()
        for t, grad in zip(parameters, grads, strict=True):
            t.grad = grad
