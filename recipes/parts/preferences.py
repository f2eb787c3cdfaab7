"""Preferences between answers: of two answers to a prompt, the one that was chosen."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory


class Preferences(InMemory):
    """Batches of prompts, chosen and rejected answers, each (B,) int64: one pair, drawn by the seed, for each prompt.

    Args:
        prompts, answers: how many there are.
        batch_size: pairs a batch, on each rank.
        steps: batches an epoch: set to the length of the run.
        seed: of the pairs and their order.
    """

    def __init__(
        self,
        *,
        prompts: PositiveInt = 4,
        answers: PositiveInt = 6,
        batch_size: PositiveInt = 4,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        generator = torch.Generator().manual_seed(seed)
        self.prompts = torch.arange(prompts)
        self.chosen, self.rejected = torch.rand(prompts, answers, generator=generator).argsort(1)[:, :2].unbind(1)

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.prompts, self.chosen, self.rejected

    held_out_tensors = train_tensors
