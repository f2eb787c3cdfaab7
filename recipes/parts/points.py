"""A data set of one point: for tests whose answer is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from pydantic import PositiveInt

from recipes.parts.images import Batches


class Point(L.LightningDataModule):
    """Batches (B, *shape) of zeros: ``steps`` of them an epoch, one for validation."""

    def __init__(
        self, *, shape: Sequence[PositiveInt] = (1,), batch_size: PositiveInt = 1, steps: PositiveInt = 500
    ) -> None:
        super().__init__()
        self.point, self.steps = torch.zeros(batch_size, *shape), steps

    def train_dataloader(self) -> Batches:
        return Batches(self.point, batch_size=len(self.point), length=self.steps)

    def val_dataloader(self) -> Batches:
        return Batches(self.point, batch_size=len(self.point))

    test_dataloader = val_dataloader
