"""Standard normal noise as a data set, for methods whose only data it is."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt

from recipes.parts.images import Batches

HELD_OUT = 64  # draws; the same for every seed


class Noise(L.LightningDataModule):
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
        super().__init__()
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.noise = torch.from_numpy(np.random.default_rng((seed, 1)).normal(size=(pool, dimensions)))
        self.held_out = torch.from_numpy(np.random.default_rng(0).normal(size=(HELD_OUT, dimensions)))

    def train_dataloader(self) -> Batches:
        trainer = self.trainer
        return Batches(
            self.noise.to(trainer.strategy.root_device if trainer else "cpu"),
            batch_size=self.batch_size,
            length=self.steps,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> Batches:
        """All held-out draws, in one batch."""
        return Batches(self.held_out, batch_size=len(self.held_out))

    test_dataloader = val_dataloader
