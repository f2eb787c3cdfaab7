"""Pairs of signs, of a known correlation: data whose second moments are exact."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory


class Signs(InMemory):
    """Batches of x and h, each (B, 1) float64: +-1, of mean 0 and variance 1, equal in ``equal`` of ten pairs.

    Their correlation is equal / 5 - 1, in every batch of ten.

    Args:
        equal: of ten pairs, from 0 to 10.
        batch_size: pairs a batch, on each rank; all pairs of equal signs come first.
        steps: batches an epoch: set to the length of the run.
        seed: of the order.
    """

    def __init__(
        self,
        *,
        equal: NonNegativeInt = 8,
        batch_size: PositiveInt = 20,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        if equal > 10:
            raise ValueError(f"data.equal={equal}: of ten pairs; choose 0 to 10")
        self.correlation = equal / 5 - 1
        h = torch.ones(10, dtype=torch.float64)
        h[equal:] = -1
        x = torch.ones(10, dtype=torch.float64)
        self.x, self.h = (torch.cat([part, -part])[:, None] for part in (x, h))

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.h

    held_out_tensors = train_tensors
