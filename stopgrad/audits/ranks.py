"""Whether the ranks of a distributed run hold the same state, bit for bit, and if not, what differs first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer


class RankDivergence(AssertionError):
    """The ranks no longer hold the same state."""


@dataclass(frozen=True)
class Difference:
    """``name`` is not the same on rank 0 and on ``rank``; ``kind`` is parameter, buffer or optimiser state."""

    kind: str
    name: str
    rank: int
    largest: float | None  # absolute difference; None where the shapes differ, or one of them has no such tensor

    def __str__(self) -> str:
        much = "shape or presence" if self.largest is None else f"by up to {self.largest:.3g}"
        return f"{self.kind} {self.name} differs between rank 0 and rank {self.rank}, {much}"


def state_tensors(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> Iterator[tuple[str, str, Tensor]]:
    """(kind, name, tensor) of all that the ranks must share: parameters, buffers, optimiser state, in this order."""
    names = {id(p): name for name, p in module.named_parameters()}
    yield from (("parameter", name, p) for name, p in module.named_parameters())
    yield from (("buffer", name, b) for name, b in module.named_buffers())
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(parameters):
            state: Mapping[str, Any] = optimizer.state.get(p, {})
            for key, value in sorted(state.items()):
                if isinstance(value, Tensor):
                    yield "optimiser state", f"{number}.{names.get(id(p), index)}.{key}", value


def fingerprint(tensor: Tensor) -> bytes:
    """Equal dtype, shape and bits, equal fingerprint."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)}".encode(), digest_size=16)
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def first_difference(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> Difference | None:
    """Compare the state of all ranks; every rank must call it, and every rank gets the same answer.

    Where all agree, one exchange of 16 bytes a rank. None also where there is one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    tensors = list(state_tensors(module, optimizers))
    prints = {(kind, name): fingerprint(tensor) for kind, name, tensor in tensors}
    whole = hashlib.blake2b(repr(list(prints.items())).encode(), digest_size=16).digest()
    if len(set(gathered(whole))) == 1:
        return None
    ranks = gathered(prints)
    keys = dict.fromkeys(key for each in ranks for key in each)
    kind, name, rank = next(
        (*key, rank) for key in keys for rank, each in enumerate(ranks) if each.get(key) != ranks[0].get(key)
    )
    mine = next((t.detach().cpu() for k, n, t in tensors if (k, n) == (kind, name)), None)
    values = gathered(mine if dist.get_rank() in (0, rank) else None)
    return Difference(kind, name, rank, _largest(values[0], values[rank]))


def _largest(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    return (a.to(torch.complex128 if a.is_complex() else torch.float64) - b).abs().max().item() if a.numel() else 0.0


def gathered(value: Any) -> list[Any]:
    """``value`` of every rank, in order; of the only one, where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
