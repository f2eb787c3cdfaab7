"""Gymnasium's vector environments by name: they go on from iteration to iteration, and from a checkpoint.

Autoreset is gymnasium's next-step kind (version 1.0 and later): the step that ends an episode returns its final
observation, and the next step ignores its action and resets. So ``Step.observation`` may always be bootstrapped from,
unless ``terminated``, and a step that is not ``valid`` is no transition.

A checkpoint holds the whole state of the environments that are plain Python: classic control, toy text and the bandit.
What is kept in a simulator (Box2D, MuJoCo, Atari) or in a class of the user's own is not saved: such a run resumes with
the weights and random streams it had, in new episodes.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import lightning as L
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

EVALUATION_SEED = 2**31  # the same episodes for every seed of the training
LONGEST = 10_000  # steps of an evaluation episode, where the environment sets no limit of its own
PLAIN = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.", "recipes.")  # their attributes are their state


class Bandit(gymnasium.Env):
    """One state and arms that all pay 1, in episodes of one step: the value is 1, and nothing tells the arms apart."""

    def __init__(self, arms: int = 2) -> None:
        self.observation_space, self.action_space = Box(0.0, 1.0, (1,)), Discrete(arms)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), 1.0, True, False, {}


gymnasium.register("Bandit-v0", entry_point="recipes.parts.environments:Bandit")


class Spaces(NamedTuple):
    """Of one environment; an action space is continuous (Box) or a choice (Discrete)."""

    observation: Box
    action: Box | Discrete


def make(id: str, num_envs: int) -> VectorEnv:
    """``num_envs`` environments in one: vectorised where the environment offers it, else one after another.

    Raises:
        ValueError: no such environment, a package it needs is missing, or it resets in another way; one line.
    """
    try:
        vector = gymnasium.make_vec(id, num_envs=num_envs)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"data.id={id}: {' '.join(str(error).split())}") from error
    if vector.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise ValueError(f"data.id={id}: resets by {vector.metadata.get('autoreset_mode')}; next-step is supported")
    return vector


def spaces(id: str) -> Spaces:
    """The spaces of an environment, for networks that are built before it runs.

    Raises:
        ValueError: it cannot be made, its observation is no Box, or its action is neither a Box nor Discrete.
    """
    vector = make(id, 1)
    observation, action = vector.single_observation_space, vector.single_action_space
    vector.close()
    wrong = f"data.id={id}: {{}} are {{}}; choose an environment with {{}}"
    if not isinstance(observation, Box):
        raise ValueError(wrong.format("observations", type(observation).__name__, "Box"))
    if not isinstance(action, (Box, Discrete)):
        raise ValueError(wrong.format("actions", type(action).__name__, "Box or Discrete"))
    if isinstance(action, Box) and not np.issubdtype(action.dtype, np.floating):
        raise ValueError(f"data.id={id}: actions are a Box of {action.dtype}; choose one of floats, or Discrete")
    return Spaces(observation, action)


class Step(NamedTuple):
    """What one step of N environments gave. CPU tensors; see this module's text for ``valid``."""

    observation: Tensor  # (N, ...) float32; of an episode that ended here, its final one
    reward: Tensor  # (N,) float32
    terminated: Tensor  # (N,) bool: the task is over, there is nothing to bootstrap from
    truncated: Tensor  # (N,) bool: cut off by a time limit; bootstrap from ``observation``
    valid: Tensor  # (N,) bool: False where the step only reset its environment


class VectorEnvironment:
    """N environments in mid-episode. One object serves a whole run: it is the batch of every iteration.

    Everything random in it, and the noise of whoever acts in it, follows from (seed, rank).

    Args:
        id: gymnasium's name of it.
        num_envs: N, on each rank.
        seed, rank: of its random streams.

    Attributes:
        observation: (N, ...) float32, what the next action answers.
        resets: (N,) bool, True where the next step only resets.
        generator: for the actions' noise and the order of minibatches; on the CPU.
        episodes: returns of the last 100 finished episodes, the newest last.
        count: transitions so far.
    """

    def __init__(self, id: str, num_envs: int, *, seed: int = 0, rank: int = 0) -> None:
        self.id, self.num_envs, self.vector = id, num_envs, make(id, num_envs)
        space = self.vector.single_action_space
        self.bounds = (space.low, space.high) if isinstance(space, Box) else None
        self.choices = int(space.n) if isinstance(space, Discrete) else 0
        self.seeds = [int(word) for word in np.random.SeedSequence((seed, rank)).generate_state(2)]
        self.limit = (self.vector.spec and self.vector.spec.max_episode_steps) or LONGEST
        self.reset()

    def reset(self) -> None:
        """Begin as a new object would."""
        observation, _ = self.vector.reset(seed=self.seeds[0])
        self.generator = torch.Generator().manual_seed(self.seeds[1])
        self.observation = _float32(observation)
        self.resets = torch.zeros(self.num_envs, dtype=torch.bool)
        self.returns = torch.zeros(self.num_envs)  # of the episodes that are under way
        self.episodes: deque[float] = deque(maxlen=100)
        self.count = 0

    def step(self, action: Tensor) -> Step:
        """Act: (N,) int64 for Discrete; (N, ...) float32 for Box, clipped to its bounds."""
        choice = action.numpy() if self.bounds is None else np.clip(action.numpy(), *self.bounds)
        observation, reward, terminated, truncated, _ = self.vector.step(choice)
        self.observation, over = _float32(observation), terminated | truncated
        step = Step(
            self.observation, _float32(reward), torch.from_numpy(terminated), torch.from_numpy(truncated), ~self.resets
        )
        self.resets = torch.from_numpy(over)
        self.returns += step.reward
        if over.any():
            self.episodes.extend(self.returns[self.resets].tolist())
            self.returns[self.resets] = 0.0
        self.count += int(np.count_nonzero(step.valid.numpy()))
        return step

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values, so that a checkpoint loads with ``weights_only=True``."""
        own: dict[str, Any] = {name: getattr(self, name).clone() for name in ("observation", "resets", "returns")}
        own |= {"episodes": list(self.episodes), "count": self.count, "generator": self.generator.get_state()}
        return own | {"layers": [_plain_state(layer) for layer in self._layers()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        layers = self._layers()
        self.generator.set_state(state["generator"])
        self.episodes.extend(state["episodes"])
        self.count = state["count"]
        if not layers:
            warnings.warn(
                f"data.id={self.id}: its state cannot be saved; this run resumes in new episodes", stacklevel=2
            )
            return
        for name in ("observation", "resets", "returns"):
            setattr(self, name, state[name].clone())
        for layer, saved in zip(layers, state["layers"], strict=True):
            _load_plain_state(layer, saved)

    def _layers(self) -> list[Any]:
        """The objects that hold the state: the vector environment, and each single one from its wrappers inwards."""
        layers: list[Any] = [self.vector]
        for env in self.vector.envs if isinstance(self.vector, SyncVectorEnv) else []:
            while isinstance(env, gymnasium.Wrapper):
                layers.append(env)
                env = env.env
            layers.append(env)
        return layers if f"{type(layers[-1]).__module__}.".startswith(PLAIN) else []


def _float32(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, np.number, np.bool_, np.ndarray))


def _plain_state(layer: Any) -> dict[str, Any]:
    """The plain attributes of an object, and its random generator's state."""

    def packed(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(packed, value))
        return torch.from_numpy(np.array(value)) if isinstance(value, (np.ndarray, np.generic)) else value

    state = {name: packed(value) for name, value in vars(layer).items() if _plain(value)}
    drawn = any(isinstance(value, np.random.Generator) for value in vars(layer).values())  # else it has none yet
    return state | {"np_random": layer.np_random.bit_generator.state} if drawn else state


def _load_plain_state(layer: Any, state: dict[str, Any]) -> None:
    def unpacked(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(unpacked, value))
        return value.numpy().copy()[()] if isinstance(value, Tensor) else value  # [()]: an array of no axes to a scalar

    for name, value in state.items():
        if name == "np_random":
            layer.np_random.bit_generator.state = value
        else:
            setattr(layer, name, unpacked(value))


@torch.no_grad()
def play(environments: VectorEnvironment, policy: Callable[[Tensor], Tensor]) -> Tensor:
    """The return (N,) of one whole episode in each environment, the same starts every time.

    Args:
        environments: are reset, so that nothing remains of what they did before.
        policy: from observations (N, ...) to actions.
    """
    environments.reset()
    returns = torch.zeros(environments.num_envs)
    playing = torch.ones(environments.num_envs, dtype=torch.bool)
    for _ in range(environments.limit):
        step = environments.step(policy(environments.observation))
        returns += step.reward * playing
        playing &= ~environments.resets
        if not playing.any():
            break
    return returns


class Iterations:
    """A loader that hands out the same environments ``length`` times; its state is theirs."""

    def __init__(self, environments: VectorEnvironment, length: int) -> None:
        self.environments, self.length = environments, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[VectorEnvironment]:
        for _ in range(self.length):
            yield self.environments

    def state_dict(self) -> dict[str, Any]:
        return self.environments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.environments.load_state_dict(state)


class Environments(L.LightningDataModule):
    """Environments to act in: a batch is a :class:`VectorEnvironment`, the same one each time.

    Args:
        id: gymnasium's name, such as ``CartPole-v1``; ``module:Name-v0`` imports the module first, which
            wants ``allow=[module]`` on the command line.
        num_envs: that run side by side on each rank.
        episodes: of a validation and of the test, played side by side, with the same starts every time.
        steps: iterations an epoch: set to the length of the run.
        seed: of the environments and of the noise of the actions.
    """

    def __init__(
        self,
        *,
        id: str = "CartPole-v1",
        num_envs: PositiveInt = 32,
        episodes: PositiveInt = 20,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.id, self.num_envs, self.episodes = id, num_envs, episodes
        self.steps, self.seed = steps, seed

    def setup(self, stage: str) -> None:
        self.spaces = spaces(self.id)

    def train_dataloader(self) -> Iterations:
        rank = self.trainer.global_rank if self.trainer else 0
        environments = VectorEnvironment(self.id, self.num_envs, seed=self.seed, rank=rank)
        return Iterations(environments, self.steps or 1)

    def val_dataloader(self) -> Iterations:
        """The same episodes on every rank, so that all agree on the best checkpoint."""
        return Iterations(VectorEnvironment(self.id, self.episodes, seed=EVALUATION_SEED), 1)

    test_dataloader = val_dataloader
