"""Labelled images in two domains: the source as it was read, the target shifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recipes.parts.images import Images
from recipes.parts.pretrained import pretrained

TEXTURES = 200
STRENGTH = 0.9  # of the brightest texture; ink is 1


def inverted(images: Tensor) -> Tensor:
    """White on black becomes black on light grey: (N, C, H, W) in [-1, 1]."""
    return 0.3 - 0.7 * images


def textured(images: Tensor) -> Tensor:
    """Digits before a random texture, as mnist-back-image has them before photographs (Larochelle et al. 2007).

    Textures are noise at two scales; image k always has the same one. (N, C, H, W) in [-1, 1].
    """
    _, channels, height, width = images.shape
    generator = np.random.default_rng(0)
    coarse, fine = (
        torch.from_numpy(generator.uniform(size=(TEXTURES, channels, height // scale, width // scale))).float()
        for scale in (4, 1)
    )
    textures = 0.7 * interpolate(coarse, size=(height, width), mode="bilinear") + 0.3 * fine
    chosen = textures[torch.from_numpy(generator.integers(TEXTURES, size=len(images)))]
    return torch.maximum(images, 2 * STRENGTH * chosen - 1)


SHIFTS = {"inverted": inverted, "textured": textured}


class Domains(Images):
    """Labelled images of a source domain and of a target domain, the same images shifted.

    Args:
        shift: what makes the target domain.
        domain: what a batch holds: ``source`` or ``target``: images (B, C, H, W) and labels (B,); ``both``: source
            images, their labels, and as many target images of other indices, without labels.
        name, shape, batch_size, steps, seed, cache: as in :class:`Images`.
    """

    def __init__(
        self,
        *,
        shift: Literal["inverted", "textured"] = "inverted",
        domain: Literal["source", "target", "both"] = "target",
        name: Literal["digits", "mnist5k", "mnist", "cifar10"] = "mnist5k",
        shape: Sequence[PositiveInt] = (1, 28, 28),
        batch_size: PositiveInt = 64,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
        cache: str = ".cache",
    ) -> None:
        super().__init__(name=name, shape=shape, batch_size=batch_size, steps=steps, seed=seed, cache=cache)
        self.shift, self.domain = shift, domain

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.shifted, self.held_out_shifted = map(SHIFTS[self.shift], (self.images, self.held_out_images))
        self.train_inputs = self.shifted if self.domain == "target" else self.images
        self.train_labels = self.labels

    def train_tensors(self) -> tuple[Tensor, ...]:
        if self.domain != "both":
            return self.train_inputs, self.train_labels
        other = torch.from_numpy(np.random.default_rng(0).permutation(len(self.shifted)))
        return self.train_inputs, self.train_labels, self.shifted[other]

    def pretrain(self, network: nn.Module, steps: int) -> dict[str, Tensor]:
        """The weights of ``network``, images to class scores, trained on the source domain; from the cache if there."""
        return pretrained(network, self.images, self.labels, steps=steps, cache=self.cache)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        """Target images and labels, source images and the same labels."""
        return self.held_out_shifted, self.held_out_labels, self.held_out_images, self.held_out_labels
