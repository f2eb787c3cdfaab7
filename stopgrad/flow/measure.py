"""Gradients measured so that nothing shows it afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from stopgrad.flow.graph import Reach, Walk


def norm(grad: Tensor) -> Tensor:
    """The L2 norm of a gradient, dense or sparse, as a tensor (no synchronisation)."""
    grad = grad.detach()
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values() if grad.is_sparse else grad.to_dense()
    return torch.linalg.vector_norm(grad, dtype=torch.float32 if grad.dtype.itemsize == 2 else None)


def norms_of(grads: Sequence[Tensor | None]) -> list[float | None]:
    """The norm of each gradient, as numbers: one synchronisation for all of a device."""
    plain = [g for g in grads if g is not None and g.layout is torch.strided and g.dtype.itemsize > 2]
    norms: dict[int, float] = {}
    for device in {g.device for g in plain}:
        there = [g.detach() for g in plain if g.device == device]
        found = torch.stack([n.double() for n in torch._foreach_norm(there)]).tolist()
        norms.update(zip((id(g) for g in plain if g.device == device), found, strict=True))
    return [None if g is None else norms[id(g)] if id(g) in norms else float(norm(g)) for g in grads]


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
    if reach is not None and reach.static_ddp or reach is None and distributed:
        return None
    try:
        if reach is not None and reach.reentrant:
            return _by_backward(loss, tensors, others)
        return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) if tensors else ()
    except RuntimeError as error:
        if reach is None and "use_reentrant" in str(error):  # a reentrant checkpoint refuses autograd.grad
            return _by_backward(loss, tensors, others)
        if "second time" not in str(error):
            raise
        raise RuntimeError(f"loss {name!r}: its graph was freed; report it before its backward") from None


def _by_backward(
    loss: Tensor, tensors: Sequence[Tensor], others: Mapping[int, Tensor]
) -> list[Tensor | None] | None:
    """A real backward with every ``.grad`` put aside."""
    leaves = list({**Walk(loss).leaves, **others, **{id(t): t for t in tensors if t.is_leaf}}.values())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None  # DDP's hooks would reduce
    if any(leaf._post_accumulate_grad_hooks for leaf in leaves):
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


@contextmanager
def as_found(modules: Sequence[nn.Module], parts: Mapping[str, Sequence[Tensor]] | None = None) -> Iterator[None]:
    """Buffers, training modes and random state are restored at the end; with ``parts``, their grads too."""
    buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers()]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    parameters = [t for tensors in (parts or {}).values() for t in tensors]
    grads = [t.grad for t in parameters]
    for t in parameters:
        t.grad = None
    random = torch.get_rng_state()
    device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(random)
        if device is not None:
            torch.cuda.set_rng_state_all(device)
        for buffer, before in buffers:
            if not torch.equal(buffer, before):  # through .data: what a graph has saved of it stays valid
                buffer.data.copy_(before)
        for module, mode in modes:
            module.training = mode
        for t, grad in zip(parameters, grads, strict=True):
            t.grad = grad
