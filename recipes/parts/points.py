"""Data of a few numbers each: a single point, for tests whose answer is known exactly, and clouds of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import lightning as L
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import Batches, InMemory


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


def normal(n: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """(n, D) from a standard normal."""
    return torch.randn(n, dimensions, generator=generator)


def eight_gaussians(n: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """(n, 2): eight on a ring of radius sqrt 2, of standard deviation .1; so either number has a variance near 1."""
    if dimensions != 2:
        raise ValueError(f"data.shape=[{dimensions}]: eight_gaussians lie in the plane; choose [2]")
    angles = torch.randint(8, (n,), generator=generator) * math.pi / 4
    return math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * normal(n, 2, generator)


def shifted(n: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """(n, 2): a Gaussian about (1.5, -1), of standard deviation .5."""
    if dimensions != 2:
        raise ValueError(f"data.shape=[{dimensions}]: shifted lies in the plane; choose [2]")
    return torch.tensor([1.5, -1.0]) + 0.5 * normal(n, 2, generator)


KINDS = {"normal": normal, "eight_gaussians": eight_gaussians, "shifted": shifted}


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'| of samples (N, D) and (M, D), without bias: 0 in the mean of two alike."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return 2 * torch.cdist(a, b).mean() - within(a) - within(b)


class Cloud(InMemory):
    """Points (B, D) from a distribution, drawn once by the seed, and others, in one batch, for validation.

    Args:
        kind: the distribution.
        shape: (D,) of a point.
        points: to train on.
        held_out: for validation.
        batch_size: points a batch on each rank; the config's is that of all ranks together.
        steps: batches an epoch.
        seed: of the points and of their order.
    """

    def __init__(
        self,
        *,
        kind: Literal["normal", "eight_gaussians", "shifted"] = "normal",
        shape: Sequence[PositiveInt] = (8,),
        points: PositiveInt = 256,
        held_out: PositiveInt = 4096,
        batch_size: PositiveInt = 64,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        generator = torch.Generator().manual_seed(seed)
        self.points, self.held_out_points = (KINDS[kind](n, *shape, generator=generator) for n in (points, held_out))

    def train_tensors(self) -> tuple[Tensor, ...]:
        return (self.points,)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return (self.held_out_points,)
