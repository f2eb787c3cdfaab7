"""Two small Markov chains whose values are known: Baird's star and the A-split, as batches of transitions.

Features, rewards and values are float64, so that a diverging run ends at a figure and a converging one at its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import lightning as L
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import Batches


class Transition(NamedTuple):
    """From one state to the next, with any leading dimensions; a terminal state has no features, and so value 0."""

    features: Tensor  # (..., d) of the state
    rewards: Tensor  # (...)
    next_features: Tensor  # (..., d)


class Chain(NamedTuple):
    """A Markov chain, its states in features.

    ``arrows`` are (state, reward, next state) by index, None for the end; those out of one state are equally likely.
    """

    names: Sequence[str]
    features: Tensor  # (S, d)
    arrows: Sequence[tuple[int, float, int | None]]

    def transitions(self) -> Transition:
        """All arrows: (A, d), (A,), (A, d)."""
        end = torch.zeros_like(self.features[0])
        starts, rewards, ends = zip(*self.arrows, strict=True)
        return Transition(
            self.features[list(starts)],
            torch.tensor(rewards, dtype=torch.float64),
            torch.stack([end if state is None else self.features[state] for state in ends]),
        )

    def values(self, discount: float) -> Tensor:
        """(S,) The true values: the solution of V = r + discount P V."""
        step = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)
        rewards = torch.zeros(len(self.names), dtype=torch.float64)
        for state, reward, following in self.arrows:
            share = 1 / sum(other[0] == state for other in self.arrows)
            rewards[state] += share * reward
            if following is not None:
                step[state, following] += share
        return torch.linalg.solve(torch.eye(len(rewards), dtype=torch.float64) - discount * step, rewards)


def star() -> Chain:
    """Baird's star (Baird 1995; with seven states as in Sutton & Barto 2018, figure 11.1).

    Every state leads to the seventh and no reward is ever paid, so that all values are 0. The value of state i is
    2 w_i + w_8, that of the seventh w_7 + 2 w_8.
    """
    features = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], dim=1).double()
    features[6, 6], features[6, 7] = 1, 2
    return Chain([str(state) for state in range(1, 8)], features, [(state, 0.0, 6) for state in range(7)])


def a_split() -> Chain:
    """A leads to B or C, each half of the time; B ends with a reward of 1, C with 0 (Sutton & Barto 2018, ex. 11.3)."""
    arrows = [(0, 0.0, 1), (0, 0.0, 2), (1, 1.0, None), (2, 0.0, None)]  # as often each as in the long run
    return Chain(["A", "B", "C"], torch.eye(3, dtype=torch.float64), arrows)


class Draws(Batches):
    """An endless stream of batches of (updates, batch_size) transitions; batch k depends on the seed and k alone.

    Each rank takes its part of one draw. With ``batch_size=None`` each update gets every transition once: its gradient
    is then the expected one.
    """

    def __init__(
        self,
        arrows: Transition,
        *,
        updates: int = 1,
        batch_size: int | None = None,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(*arrows, batch_size=1, length=length, seed=seed, rank=rank, world_size=world_size)
        self.shape = (updates, batch_size * world_size if batch_size else len(arrows.rewards))
        self.sampled = batch_size is not None

    def batch(self, k: int) -> Transition:
        count = len(self.tensors[0])
        if self.sampled:
            indices = torch.from_numpy(
                np.random.default_rng((self.seed, 0, k)).integers(count, size=self.shape)[
                    :, self.rank :: self.world_size
                ]
            )
        else:
            indices = torch.arange(count).expand(self.shape)
        return Transition(*(tensor[indices.to(tensor.device)] for tensor in self.tensors))


class Transitions(L.LightningDataModule):
    """Transitions of a chain, drawn evenly: those of ``updates_per_step`` updates a batch.

    Args:
        chain: ``star`` or ``a_split``.
        batch_size: transitions drawn for each update; None for every one of the chain, which makes it deterministic.
        updates_per_step: updates a training step. Only the loop around them costs less where it is more.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the draws.
    """

    def __init__(
        self,
        *,
        chain: Literal["star", "a_split"] = "star",
        batch_size: PositiveInt | None = 1,
        updates_per_step: PositiveInt = 10,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.chain = {"star": star, "a_split": a_split}[chain]()
        self.batch_size, self.updates_per_step, self.steps, self.seed = batch_size, updates_per_step, steps, seed

    def train_dataloader(self) -> Draws:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else "cpu"
        return Draws(
            Transition(*(part.to(device) for part in self.chain.transitions())),
            updates=self.updates_per_step,
            batch_size=self.batch_size,
            length=self.steps,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> Draws:
        """All transitions, in one batch."""
        return Draws(self.chain.transitions(), length=1)

    test_dataloader = val_dataloader
