"""Symbols to be recalled after a delay: sequences whose answers need a memory of a known length."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory

UNANSWERABLE = -100  # the target where there is nothing to recall yet; cross_entropy ignores it


class Recall(InMemory):
    """Batches of symbols (B, T) and targets (B, T), int64: the target of a step is the symbol ``delay`` steps before.

    Args:
        symbols: how many there are, evenly drawn; chance is one in so many.
        delay: in steps. The targets of the first so many steps are ``UNANSWERABLE``.
        length: T.
        sequences: that are drawn for the training; 500 more are held out.
        batch_size: sequences a batch, on each rank.
        steps: batches an epoch: set to the length of the run.
        seed: of the symbols and their order.
    """

    def __init__(
        self,
        *,
        symbols: PositiveInt = 4,
        delay: PositiveInt = 12,
        length: PositiveInt = 120,
        sequences: PositiveInt = 10_000,
        batch_size: PositiveInt = 32,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        if length <= delay:
            raise ValueError(f"data.length={length}: choose more than data.delay={delay}")
        self.delay = delay
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(symbols, (sequences + 500, length), generator=generator)
        self.sequences, self.held_out = drawn[:sequences], drawn[sequences:]

    def targets(self, symbols: Tensor) -> Tensor:
        """(B, T) to (B, T)."""
        nothing = symbols.new_full((len(symbols), self.delay), UNANSWERABLE)
        return torch.cat([nothing, symbols[:, : -self.delay]], dim=1)

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.sequences, self.targets(self.sequences)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return self.held_out, self.targets(self.held_out)
