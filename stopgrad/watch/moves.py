"""Values of parameters and buffers, sampled with a stride: what moved, and in which step."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stopgrad.cuts.torch_internals import version_of, without_overrides

SAMPLES = 64  # values of a tensor


def sample(tensor: Tensor) -> Tensor | None:
    """A few of a tensor's values, from its beginning to its end, on its own device; None where it has none to show."""
    if tensor.layout != torch.strided or tensor.numel() == 0 or tensor.device.type == "meta":
        return None
    with torch.no_grad(), without_overrides():
        flat = tensor.detach().view(-1) if tensor.is_contiguous() else tensor.detach().reshape(-1)
        return flat[:: -(-flat.numel() // SAMPLES)].clone()


def equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, but for the sign of a zero; NaN is like NaN."""
    with without_overrides():
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


@dataclass(eq=False)
class First:
    """A tensor's values when it was first seen."""

    tensor: weakref.ref[Tensor]
    values: Tensor
    version: int


@dataclass
class Moves:
    """What was seen to move.

    Attributes:
        still: (parameter, optimiser) -> steps in which it moved though it was to stand still: it does not require
            grad, or its gradient is None.
        steps: (parameter, optimiser) -> steps in which it was to stand still.
        rows: (parameter, optimiser) -> steps in which rows moved whose gradient a hook had set to zero.
    """

    first: dict[int, First] = field(default_factory=dict)
    still: Counter[tuple[int, int]] = field(default_factory=Counter)
    steps: Counter[tuple[int, int]] = field(default_factory=Counter)
    rows: Counter[tuple[int, int]] = field(default_factory=Counter)

    def note(self, tensor: Tensor) -> None:
        """Remember the values of a tensor that is new."""
        known = self.first.get(id(tensor))
        if known is None or known.tensor() is not tensor:
            values = sample(tensor)
            if values is not None:
                self.first[id(tensor)] = First(weakref.ref(tensor), values, version_of(tensor))

    def moved(self, tensor: Tensor) -> bool | None:
        """Whether a tensor's values are others than at first; None where it was not noted."""
        known, now = self.first.get(id(tensor)), sample(tensor)
        if known is None or known.tensor() is not tensor or now is None:
            return None
        return not equal(known.values, now)

    def began_alike(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors held the same values when they were first seen."""
        first, second = self.first.get(id(one)), self.first.get(id(other))
        if first is None or second is None or first.tensor() is not one or second.tensor() is not other:
            return False
        return equal(first.values, second.values)

    def written(self, tensor: Tensor) -> bool:
        """Whether something was written into a tensor since it was noted, be it what was there."""
        known = self.first.get(id(tensor))
        return known is not None and known.tensor() is tensor and known.version != version_of(tensor)


def still_rows(parameter: Tensor) -> Tensor | None:
    """The rows of a parameter whose gradient is exactly zero, as a mask; None where there is none, or no row."""
    grad = parameter.grad
    if grad is None or grad.dim() < 2 or grad.layout != torch.strided:
        return None
    with torch.no_grad(), without_overrides():
        mask = grad.detach().flatten(1).count_nonzero(1) == 0
        return mask if bool(mask.any()) and not bool(mask.all()) else None
