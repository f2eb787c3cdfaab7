"""A replay buffer, and environments that fill it: off-policy transitions as an endless stream of batches.

The buffer lies on the device that trains. A checkpoint holds what is in it, so that a resumed run draws what it would
have: 4 bytes a number, 36 bytes a transition of Pendulum-v1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from gymnasium.spaces import Box, Discrete
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.environments import Environments, VectorEnvironment


class Transitions(NamedTuple):
    """With any leading dimensions; observations and actions are flat."""

    observations: Tensor  # (..., O)
    actions: Tensor  # (..., A) in [-1, 1], whatever the environment's bounds; a choice as its number (..., 1)
    rewards: Tensor  # (...)
    next_observations: Tensor  # (..., O)
    going_on: Tensor  # (...) 0 where the environment terminated, else 1: a truncation is bootstrapped through


class Replay:
    """The last ``capacity`` transitions, each a row of one table, so that a batch is gathered at once.

    Attributes:
        count: transitions ever added.
    """

    def __init__(self, capacity: int, observation: int, action: int, device: torch.device | str = "cpu") -> None:
        self.sizes = [observation, action, 1, observation, 1]
        self.table = torch.zeros(capacity, sum(self.sizes), device=device)
        self.count = 0

    def __len__(self) -> int:
        return min(self.count, len(self.table))

    def add(self, transitions: Transitions) -> None:
        """Add transitions (N, ...), in place of the oldest where the table is full."""
        observations, actions, rewards, following, going_on = transitions
        rows = torch.cat([observations, actions, rewards[:, None], following, going_on[:, None]], dim=1)
        where = (torch.arange(len(rows)) + self.count) % len(self.table)
        self.table[where.to(self.table.device)] = rows.to(self.table)
        self.count += len(rows)

    def sample(self, *shape: int, generator: torch.Generator) -> Transitions:
        """Transitions of that shape, drawn evenly and with replacement."""
        indices = torch.randint(len(self), shape, generator=generator).to(self.table.device)
        observations, actions, rewards, following, going_on = self.table[indices].split(self.sizes, dim=-1)
        return Transitions(observations, actions, rewards.squeeze(-1), following, going_on.squeeze(-1))

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.table[: len(self)].clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.table[: len(state["table"])] = state["table"].to(self.table)


class Experience:
    """Acts, remembers and draws: an iteration adds as many transitions as it yields batches, (updates, B, ...) stacked.

    The first iteration acts at random for ``warmup`` transitions before.

    Args:
        environments: to act in.
        replay: to remember in.
        policy: from observations (N, O) and a generator to actions (N, A) of a Transitions; None acts at random.
        batch_size: B.
        updates: batches an iteration yields.
        warmup: transitions to begin with.
        length: iterations.
    """

    def __init__(
        self,
        environments: VectorEnvironment,
        replay: Replay,
        policy: Callable[[Tensor, torch.Generator], Tensor] | None,
        *,
        batch_size: int,
        updates: int,
        warmup: int,
        length: int,
    ) -> None:
        self.environments, self.replay, self.policy = environments, replay, policy
        self.batch_size, self.updates, self.warmup, self.length = batch_size, updates, warmup, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Transitions]:
        for _ in range(self.length):
            self.act(None, self.warmup - self.replay.count)
            self.act(self.policy, self.updates)
            yield self.replay.sample(self.updates, self.batch_size, generator=self.environments.generator)

    @torch.no_grad()
    def act(self, policy: Callable[[Tensor, torch.Generator], Tensor] | None, transitions: int) -> None:
        """Steps of all environments, until they are about as many transitions; a step that only resets is none."""
        environments, generator = self.environments, self.environments.generator
        for _ in range(math.ceil(transitions / environments.num_envs)):
            before = environments.observation.flatten(1)
            if policy is None:
                actions = at_random(environments, self.replay.sizes[1])
            else:
                actions = policy(before.to(self.replay.table.device), generator).cpu()
            step = environments.step(unscaled(environments, actions))
            seen = Transitions(before, actions, step.reward, step.observation.flatten(1), (~step.terminated).float())
            self.replay.add(seen if step.valid.all() else Transitions(*(part[step.valid] for part in seen)))

    def state_dict(self) -> dict[str, Any]:
        return {"environments": self.environments.state_dict(), "replay": self.replay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.environments.load_state_dict(state["environments"])
        self.replay.load_state_dict(state["replay"])


def at_random(environments: VectorEnvironment, action: int) -> Tensor:
    """Actions (N, action) of a Transitions, evenly drawn from the environments' own generator."""
    n, generator = environments.num_envs, environments.generator
    if environments.choices:
        return torch.randint(environments.choices, (n, 1), generator=generator).float()
    return torch.rand(n, action, generator=generator) * 2 - 1


def unscaled(environments: VectorEnvironment, actions: Tensor) -> Tensor:
    """Actions (N, A) of a Transitions in the environment's bounds and shape (N, ...); choices as (N,) int64."""
    if environments.bounds is None:
        return actions.squeeze(1).long()
    low, high = map(torch.from_numpy, environments.bounds)
    return low + (actions.view(-1, *low.shape) + 1) / 2 * (high - low)


class ReplayedEnvironments(Environments):
    """Environments with a bounded Box of actions, or Discrete ones, whose transitions are replayed.

    Args:
        id, num_envs, episodes, steps, seed: see :class:`~recipes.parts.environments.Environments`.
        batch_size: transitions an update learns from.
        updates_per_step: updates a training step, and transitions that are added for them.
        capacity: transitions the buffer holds.
        warmup: transitions of random actions before the first update.

    Attributes:
        policy: to act with, set by who learns it; None acts at random.
    """

    def __init__(
        self,
        *,
        id: str = "Pendulum-v1",
        num_envs: PositiveInt = 10,
        batch_size: PositiveInt = 128,
        updates_per_step: PositiveInt = 10,
        capacity: PositiveInt = 100_000,
        warmup: NonNegativeInt = 1000,
        episodes: PositiveInt = 10,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(id=id, num_envs=num_envs, episodes=episodes, steps=steps, seed=seed)
        if warmup > capacity:
            raise ValueError(f"data.warmup={warmup}: the buffer holds data.capacity={capacity}")
        if updates_per_step % num_envs:
            raise ValueError(f"data.updates_per_step={updates_per_step}: choose a multiple of data.num_envs={num_envs}")
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.capacity, self.warmup = capacity, warmup
        self.policy: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        sizes(self.id, self.spaces)

    def train_dataloader(self) -> Experience:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else "cpu"
        rank = trainer.global_rank if trainer else 0
        return Experience(
            VectorEnvironment(self.id, self.num_envs, seed=self.seed, rank=rank),
            Replay(self.capacity, *sizes(self.id, self.spaces), device),
            self.policy,
            batch_size=self.batch_size,
            updates=self.updates_per_step,
            warmup=self.warmup,
            length=self.steps or 1,
        )


def sizes(id: str, spaces: Any) -> tuple[int, int]:
    """Numbers of an observation and of an action, which is one where it is a choice.

    Raises:
        ValueError: actions are an unbounded Box.
    """
    if isinstance(spaces.action, Discrete):
        return math.prod(spaces.observation.shape), 1
    return bounded_sizes(id, spaces)


def bounded_sizes(id: str, spaces: Any) -> tuple[int, int]:
    """Numbers of an observation and of an action.

    Raises:
        ValueError: actions are no bounded Box.
    """
    observation, action = spaces
    if not isinstance(action, Box):
        raise ValueError(f"data.id={id}: actions are {type(action).__name__}; choose an environment with Box actions")
    if not action.is_bounded():
        raise ValueError(f"data.id={id}: actions are unbounded; choose an environment with a bounded Box")
    return math.prod(observation.shape), math.prod(action.shape)
