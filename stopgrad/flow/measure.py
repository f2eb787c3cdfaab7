"""Gradients measured so that nothing shows it afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from stopgrad.cuts.torch_internals import REENTRANT, post_accumulate_hooks
from stopgrad.flow.graph import Walk


def norm(grad: Tensor) -> Tensor:
    """The L2 norm of a gradient, dense or sparse, as a tensor (no synchronisation)."""
    grad = grad.detach()
    if grad.layout is not torch.strided:
        grad = grad.coalesce().values() if grad.is_sparse else grad.to_dense()
    return torch.linalg.vector_norm(grad, dtype=torch.float32 if grad.dtype.itemsize == 2 else None)


def gradient_norms(
    name: str, loss: Tensor, tensors: Sequence[Tensor], others: Mapping[int, Tensor]
) -> list[float | None] | None:
    """The norm of ``loss``'s gradient at each tensor, None where none arrives. No ``.grad`` changes.

    Args:
        name: the loss's name, for errors.
        others: leaf tensors besides ``tensors`` that a full backward would also reach.

    Returns:
        None if it cannot be measured without a trace: under DDP with ``static_graph``, and under a reentrant checkpoint
        in DDP or beside hooks that run after accumulation.

    Raises:
        RuntimeError: the graph was freed by a backward.
    """
    walk = Walk(loss)
    if walk.static_ddp:
        return None
    try:
        if REENTRANT in walk.opaque:  # refuses autograd.grad
            leaves = {**walk.leaves, **others, **{id(t): t for t in tensors if t.is_leaf}}
            grads = _by_backward(loss, tensors, list(leaves.values()))
            if grads is None:
                return None
        else:
            grads = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) if tensors else ()
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(f"loss {name!r}: its graph was freed; report it before its backward") from None
    norms = [None if grad is None else norm(grad) for grad in grads]
    return [None if n is None else float(n) for n in norms]


def _by_backward(loss: Tensor, tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None] | None:
    """A real backward with every ``.grad`` put aside."""
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
