"""Tokens for a router to send to experts, float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory

SPREAD = 0.1  # of an undecided token's logits


def clusters(
    n: int, experts: int, features: int, maps: np.random.Generator, draws: np.random.Generator
) -> list[Tensor]:
    """Inputs (n, features), labels (n, 1) and clusters (n,): normal about a centre of length 4, and a number of each.

    A label is the input's length along a direction of its cluster's; all centres and directions are orthogonal.
    """
    axes = np.linalg.qr(maps.normal(size=(features, features)))[0]
    which = draws.integers(experts, size=n)
    inputs = 4 * axes[which] + draws.normal(size=(n, features))
    labels = (inputs * axes[experts + which]).sum(1, keepdims=True)
    return [torch.from_numpy(part) for part in (inputs, labels, which)]


def unequal(n: int, experts: int, draws: np.random.Generator) -> list[Tensor]:
    """Logits (n, experts): a quarter sure of one expert but the first, the rest nearly even; labels and clusters 0."""
    logits = SPREAD * draws.normal(size=(n, experts))
    sure = np.arange(n // 4)
    logits[sure, 1 + sure % (experts - 1)] += 8
    return [torch.from_numpy(logits), torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, dtype=torch.long)]


class Tokens(InMemory):
    """Batches of inputs (B, features), labels (B, 1) and clusters (B,).

    Args:
        kind: ``clusters``, each of which one linear expert can do; or ``unequal``: a router's logits, as many as there
            are experts, of which some are certain.
        tokens: to train on; half as many judge.
        experts, features: of the task; clusters need twice as many features as experts, ``unequal`` as many.
        batch_size: tokens a batch, on each rank; null: all of them.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the tokens and their order.
    """

    def __init__(
        self,
        *,
        kind: Literal["clusters", "unequal"] = "clusters",
        tokens: PositiveInt = 4096,
        experts: PositiveInt = 4,
        features: PositiveInt = 8,
        batch_size: PositiveInt | None = 256,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size or tokens, steps, seed)
        needed = experts if kind == "unequal" else 2 * experts
        if features != needed:
            raise ValueError(f"data.features={features}: {kind} of {experts} experts; choose {needed}")
        if kind == "unequal":
            self.tensors = self.held_out = unequal(tokens, experts, np.random.default_rng((seed, 1)))
        else:
            self.tensors, self.held_out = (
                clusters(n, experts, features, np.random.default_rng((seed, 1)), np.random.default_rng((seed, draw)))
                for n, draw in ((tokens, 2), (tokens // 2, 3))
            )

    def train_tensors(self) -> list[Tensor]:
        return self.tensors

    def held_out_tensors(self) -> list[Tensor]:
        return self.held_out
