"""Digits to be sorted: a task whose answers can be checked, and need not be shown."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from recipes.parts.batches import InMemory


class SortedShare(nn.Module):
    """Of completions (P, G, L), the share of places at which the sorted prompt's (P, L) digit stands: (P, G)."""

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return (tokens == prompts.sort(-1).values[:, None]).float().mean(-1)


class Digits(InMemory):
    """Batches of prompts (B, L) int64, of which held-out ones are never trained on.

    Args:
        vocabulary: digits 0 to V - 1.
        length: L.
        prompts: to train on; 500 more are held out.
        batch_size: prompts a batch, on each rank.
        steps: batches an epoch: set to the length of the run.
        seed: of the prompts and their order.
    """

    def __init__(
        self,
        *,
        vocabulary: PositiveInt = 10,
        length: PositiveInt = 4,
        prompts: PositiveInt = 4000,
        batch_size: PositiveInt = 16,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        every = torch.cartesian_prod(*[torch.arange(vocabulary)] * length)
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        if prompts + 500 > len(every):
            raise ValueError(f"data.prompts={prompts}: there are {len(every)}, of which 500 are held out")
        self.prompts, self.held_out = every[order[:prompts]], every[order[prompts : prompts + 500]]

    def train_tensors(self) -> tuple[Tensor, ...]:
        return (self.prompts,)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return (self.held_out,)
