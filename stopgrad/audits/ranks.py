"""Whether the ranks of a distributed run hold the same state, bit for bit, and if not, what differs first."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stopgrad.audits.writes import plain


class RankDivergence(AssertionError):
    """The ranks no longer hold the same state."""


@dataclass(frozen=True)
class Difference:
    """``name`` is not the same on ``first`` and on ``rank``; ``kind`` is parameter, buffer or optimiser state."""

    kind: str
    name: str  # with the shard, where it is one: ``head.weight (shard 1 of 2)``
    rank: int
    largest: float | None  # absolute difference; None where the shapes differ, or one of them has no such tensor
    first: int = 0  # the first rank that should hold the same

    def __str__(self) -> str:
        much = "shape or presence" if self.largest is None else f"by up to {self.largest:.3g}"
        return f"{self.kind} {self.name} differs between rank {self.first} and rank {self.rank}, {much}"


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
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    digest.update(bytes_of(tensor))
    return digest.digest()


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row by row. Not by NumPy: a tensor that has shared its memory is never freed by FSDP2."""
    plain = tensor.detach().cpu().contiguous()
    size = plain.numel() * plain.element_size()
    return ctypes.string_at(plain.data_ptr(), size) if size else b""


def piece_of(tensor: Tensor) -> str:
    """Which shard of a DTensor this rank holds, ``shard 1 of 2``; of what every rank holds, nothing.

    The shards along several dimensions of a mesh are counted along each: ``shard 1 of 2, 0 of 4``.
    """
    sharded: Any = tensor
    if not hasattr(sharded, "device_mesh"):
        return ""
    mesh = sharded.device_mesh
    dimensions = zip(mesh.get_coordinate() or (), mesh.shape, sharded.placements, strict=False)
    shards = [f"{at} of {size}" for at, size, placement in dimensions if placement.is_shard() and size > 1]
    return f"shard {', '.join(shards)}" if shards else ""


def sharded_tensors(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> list[str]:
    """The tensors of the state of which this rank holds a shard alone."""
    return [name for _, name, tensor in state_tensors(module, optimizers) if piece_of(tensor)]


def first_difference(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> Difference | None:
    """Compare the state of all ranks; every rank must call it, and every rank gets the same answer.

    Where all agree, one exchange of 16 bytes a rank. None also where there is one process. Shards of DTensors are
    compared with their replicas, where they have any.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    tensors: dict[tuple[str, str], Tensor] = {}
    pieces: dict[str, dict[tuple[str, str], bytes]] = {"": {}}
    for kind, name, tensor in state_tensors(module, optimizers):
        piece = piece_of(tensor)
        key = kind, f"{name} ({piece})" if piece else name
        tensors[key] = plain(tensor).cpu()
        pieces.setdefault(piece, {})[key] = fingerprint(tensors[key])
    digests = {
        piece: hashlib.blake2b(repr(list(prints.items())).encode(), digest_size=16).digest()
        for piece, prints in pieces.items()
    }
    everywhere = gathered(digests)
    if all(len({each[piece] for each in everywhere if piece in each}) == 1 for each in everywhere for piece in each):
        return None
    (kind, name), first, rank = next(_differences(gathered(pieces)))
    values = gathered(tensors.get((kind, name)) if dist.get_rank() in (first, rank) else None)
    return Difference(kind, name, rank, _largest(values[first], values[rank]), first)


def _differences(ranks: list[dict[str, dict[tuple[str, str], bytes]]]) -> Iterator[tuple[tuple[str, str], int, int]]:
    """(key, first rank, another) where two ranks that hold the same piece hold other bits."""
    for piece in dict.fromkeys(piece for each in ranks for piece in each):
        first, *others = [rank for rank, each in enumerate(ranks) if piece in each]
        for key in dict.fromkeys(key for rank in (first, *others) for key in ranks[rank][piece]):
            for rank in others:
                if ranks[rank][piece].get(key) != ranks[first][piece].get(key):
                    yield key, first, rank


def whole_of(tensor: Tensor) -> Tensor:
    """All of a tensor, also where the ranks hold shards of it; then every rank must ask."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(sharded, "full_tensor") else tensor


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
