"""Vector environments: what a step means at the end of an episode, streams by seed and rank, state, refusals."""

import io
import warnings

import gymnasium
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from recipes.parts.environments import Environments, VectorEnvironment, play, spaces

SAVED = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Bandit-v0"]


def random_actions(environments):
    space, generator = environments.vector.single_action_space, environments.generator
    if isinstance(space, Discrete):
        return torch.randint(0, int(space.n), (environments.num_envs,), generator=generator)
    return torch.randn(environments.num_envs, *space.shape, generator=generator)


def steps(environments, count):
    return [environments.step(random_actions(environments)) for _ in range(count)]


def same(a, b):
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


class TestEpisodes:
    def test_the_step_after_the_last_only_resets(self):
        environments = VectorEnvironment("CartPole-v1", 8)
        before, seen = torch.zeros(8, dtype=torch.bool), 0
        for step in steps(environments, 200):
            assert torch.equal(step.valid, ~before)
            assert torch.equal(step.reward, step.valid.float())  # CartPole pays 1 a step, and a reset nothing
            assert (step.observation[before].abs() <= 0.05).all()  # a fresh start
            fallen = (step.observation[:, 2].abs() > 0.2095) | (step.observation[:, 0].abs() > 2.4)
            assert torch.equal(step.terminated, fallen & step.valid)  # what ended is the final observation
            before = step.terminated | step.truncated
            seen += int(step.valid.sum())
        assert environments.count == seen
        assert torch.equal(environments.resets, before)

    def test_truncation_is_told_from_termination(self):
        environments = VectorEnvironment("Pendulum-v1", 2)
        run = steps(environments, 402)
        assert [k for k, step in enumerate(run) if step.truncated.any()] == [199, 400]  # the 200th is the reset
        assert [k for k, step in enumerate(run) if not step.valid.all()] == [200, 401]
        assert not any(step.terminated.any() for step in run)
        first = sum(step.reward for step in run[:200])
        torch.testing.assert_close(torch.tensor(list(environments.episodes)[:2]), first)

    def test_continuous_actions_are_clipped(self):
        a, b = (VectorEnvironment("Pendulum-v1", 2) for _ in range(2))
        assert torch.equal(a.step(torch.full((2, 1), 50.0)).observation, b.step(torch.full((2, 1), 2.0)).observation)

    def test_play_is_one_episode_each_and_the_same_every_time(self):
        environments = VectorEnvironment("CartPole-v1", 4, seed=3)

        def push_right(observation):
            return torch.ones(len(observation), dtype=torch.int64)

        returns = play(environments, push_right)
        assert ((returns >= 8) & (returns <= 11)).all()  # pushed one way, the pole falls in ten steps
        assert torch.equal(play(environments, push_right), returns)


class TestStreams:
    def test_seed_and_rank_decide(self):
        seeds = [(0, 0), (0, 0), (0, 1), (1, 0)]
        runs = [steps(VectorEnvironment("CartPole-v1", 3, seed=seed, rank=rank), 30) for seed, rank in seeds]
        assert same(runs[0], runs[1])
        assert not same(runs[0], runs[2])
        assert not same(runs[0], runs[3])
        assert not same(runs[2], runs[3])

    def test_nothing_is_drawn_from_the_global_generators(self):
        before = torch.get_rng_state()
        steps(VectorEnvironment("Pendulum-v1", 2), 205)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", SAVED)
    def test_state_goes_through_a_safe_checkpoint_bit_for_bit(self, name):
        whole, resumed = VectorEnvironment(name, 3, seed=1), VectorEnvironment(name, 3, seed=2)
        steps(whole, 230)  # past a reset of every environment but the mountain car's
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(whole.observation, resumed.observation)
        assert same(steps(whole, 250), steps(resumed, 250))
        assert (whole.count, whole.episodes) == (resumed.count, resumed.episodes)

    def test_saved_state_is_a_copy(self):
        environments = VectorEnvironment("CartPole-v1", 3)
        state = environments.state_dict()
        saved = {name: value.clone() for name, value in state["layers"][0].items() if isinstance(value, torch.Tensor)}
        steps(environments, 20)
        assert all(torch.equal(state["layers"][0][name], value) for name, value in saved.items())
        assert torch.equal(state["returns"], torch.zeros(3))

    def test_a_loader_is_as_long_as_the_run_and_has_the_state(self):
        data = Environments(id="CartPole-v1", num_envs=2, steps=5)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(loader) == len(batches) == 5
        assert all(batch is batches[0] for batch in batches)
        other = Environments(id="CartPole-v1", num_envs=2, seed=9).train_dataloader()
        steps(batches[0], 7)
        other.load_state_dict(loader.state_dict())
        assert same(steps(batches[0], 9), steps(next(iter(other)), 9))


class Simulator(gymnasium.Env):
    """An environment whose state is not in its attributes, as far as anyone can tell."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 0.0, False, False, {}


def test_state_that_cannot_be_saved_says_so():
    gymnasium.register("Simulator-v0", Simulator, max_episode_steps=5)
    environments = VectorEnvironment("Simulator-v0", 2)
    state = environments.state_dict()
    with pytest.warns(UserWarning, match=r"data.id=Simulator-v0: its state cannot be saved; .* new episodes"):
        VectorEnvironment("Simulator-v0", 2).load_state_dict(state)


class Strange(Simulator):
    def __init__(self, observation=None, action=None):
        self.observation_space = observation or Box(-1, 1, (2,))
        self.action_space = action or Discrete(2)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (Dict({"a": Box(0, 1)}), None, "observations are Dict; choose an environment with Box$"),
        (Discrete(3), None, "observations are Discrete; choose an environment with Box$"),
        (None, MultiDiscrete([2, 2]), "actions are MultiDiscrete; choose an environment with Box or Discrete$"),
        (None, Box(0, 3, (2,), "int64"), "actions are a Box of int64; choose one of floats, or Discrete$"),
    ],
)
def test_spaces_that_are_not_supported(observation, action, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # registered again by the next case
        gymnasium.register("Strange-v0", Strange, kwargs={"observation": observation, "action": action})
    with pytest.raises(ValueError, match=f"^data.id=Strange-v0: {message}"):
        spaces("Strange-v0")
