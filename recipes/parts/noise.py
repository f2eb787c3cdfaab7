"""Standard normal noise as a data set, for methods whose only data it is."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory

HELD_OUT = 64  # draws; the same for every seed


class Noise(InMemory):
    """Batches (B, D) of float64 noise from a pool, in a fresh order every time it is used up.

    Args:
        dimensions: D.
        pool: draws to train on.
        batch_size: draws a batch, on each rank.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the pool and its order.
    """

    def __init__(
        self,
        *,
        dimensions: PositiveInt,
        pool: PositiveInt = 65_536,
        batch_size: PositiveInt = 8,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        self.noise = torch.from_numpy(np.random.default_rng((seed, 1)).normal(size=(pool, dimensions)))
        self.held_out = torch.from_numpy(np.random.default_rng(0).normal(size=(HELD_OUT, dimensions)))

    def train_tensors(self) -> tuple[Tensor, ...]:
        return (self.noise,)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return (self.held_out,)
