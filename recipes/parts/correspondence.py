"""Pairs that correspond: two linear views of the same latents, each with noise of its own."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory


class Correspondence(InMemory):
    """Batches of images and of the texts that belong to them, each (B, D) float64; 256 pairs are held out.

    Both are z A / sqrt(Z) + noise, z (Z,) normal, A (Z, D) normal and of each view its own.

    Args:
        features: D, of an image and of a text.
        latents: Z.
        noise: its standard deviation; the signal's is 1.
        pairs: to train on.
        batch_size: pairs a batch, on each rank.
        steps: batches an epoch: set to the length of the run.
        seed: of the pairs and their order.
    """

    HELD_OUT = 256

    def __init__(
        self,
        *,
        features: PositiveInt = 16,
        latents: PositiveInt = 8,
        noise: NonNegativeFloat = 0.2,
        pairs: PositiveInt = 2048,
        batch_size: PositiveInt = 32,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        z, n = normal(pairs + self.HELD_OUT, latents), pairs + self.HELD_OUT
        images, texts = (z @ normal(latents, features) / latents**0.5 + noise * normal(n, features) for _ in range(2))
        self.images, self.held_out_images = images[:pairs], images[pairs:]
        self.texts, self.held_out_texts = texts[:pairs], texts[pairs:]

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.texts

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return self.held_out_images, self.held_out_texts
