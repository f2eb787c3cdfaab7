"""Small regression tasks to learn to learn from: a pool of them to train on, others to be judged by."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory

HELD_OUT = 600  # sinusoids that judge; the same for every seed
QUERIES = 100  # samples of each


class Tasks(NamedTuple):
    """T tasks: K samples of each to adapt to, and the samples that judge how well."""

    support_inputs: Tensor  # (T, K, 1)
    support_targets: Tensor  # (T, K, 1)
    query_inputs: Tensor  # (T, Q, 1)
    query_targets: Tensor  # (T, Q, 1)


def sinusoids(tasks: int, shots: int, queries: int, random: np.random.Generator) -> Tasks:
    """y = A sin(x - phase): A in [.1, 5], phase in [0, pi], x in [-5, 5] (Finn et al. 2017, section 5.1)."""
    amplitude, phase = random.uniform(0.1, 5, (tasks, 1, 1)), random.uniform(0, np.pi, (tasks, 1, 1))
    inputs = random.uniform(-5, 5, (tasks, shots + queries, 1))
    targets = amplitude * np.sin(inputs - phase)
    parts = (part[:, which] for which in (slice(shots), slice(shots, None)) for part in (inputs, targets))
    return Tasks(*(torch.from_numpy(part).float() for part in parts))


def lines() -> Tasks:
    """y = c x, one sample each: c = 1 at x = 1, and c = -1 at x = sqrt(.1), so that (theta x - y)^2 = a (theta - c)^2.

    The curvatures are a = 1 and .1.
    """
    inputs = torch.tensor([1.0, 0.1**0.5]).view(2, 1, 1)
    targets = inputs * torch.tensor([1.0, -1.0]).view(2, 1, 1)
    return Tasks(inputs, targets, inputs, targets)


class RegressionTasks(InMemory):
    """Batches of tasks, from a pool in memory.

    Args:
        kind: ``sinusoids``, drawn; or ``lines``, two of them, the same in every batch.
        pool: sinusoids to train on.
        shots: K, samples of each to adapt to; as many judge in training.
        batch_size: tasks a batch, on each rank.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the pool and its order.
    """

    def __init__(
        self,
        *,
        kind: Literal["sinusoids", "lines"] = "sinusoids",
        pool: PositiveInt = 75_000,
        shots: PositiveInt = 10,
        batch_size: PositiveInt = 25,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        if kind == "lines":
            self.tasks = self.held_out = lines()
        else:
            self.tasks = sinusoids(pool, shots, shots, np.random.default_rng((seed, 1)))
            self.held_out = sinusoids(HELD_OUT, shots, QUERIES, np.random.default_rng(0))

    def train_tensors(self) -> Tasks:
        return self.tasks

    def held_out_tensors(self) -> Tasks:
        return self.held_out
