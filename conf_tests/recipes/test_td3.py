"""The TD3 recipe: its losses against hand-made numbers, each cut bit for bit, replay, truncation, resume."""

import re
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from conf_tests.helpers import build_recipe, final, norms, train
from recipes.parts.critics import TwinCritic
from recipes.parts.environments import VectorEnvironment
from recipes.parts.replay import Experience, Replay, ReplayedEnvironments, Transitions, unscaled
from recipes.td3 import CUTS, TD3

ONLINE = "stop.target_network=online"
SMALL = ["recipe=td3", "recipe.width=8"]


def random_batch(*shape: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations, following = torch.randn(2, *shape, 3, generator=generator)
    actions = torch.rand(*shape, 1, generator=generator) * 2 - 1
    going_on = (torch.rand(*shape, generator=generator) < 0.8).float()
    return Transitions(observations, actions, torch.randn(*shape, generator=generator), following, going_on)


def trained(steps: int, *overrides: str) -> TD3:
    """The recipe after ``steps`` batches of 4 updates of the very training_step, without Lightning around it."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizers = recipe.configure_optimizers()
    for optimizer in optimizers:
        optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizers
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=0)
    for k in range(steps):
        recipe.trainer.global_step = k
        recipe.log_health = lambda: None
        recipe.training_step(random_batch(4, 16, seed=k), k)
    return recipe


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


class TestTwinCritic:
    def test_is_two_networks(self):
        """Against nn.Linear layers with the same weights, values and gradients."""
        critic, batch = TwinCritic(4, 8), random_batch(5)
        twins = []
        for k in range(2):
            layers = [nn.Linear(*weight.shape[1:]) for weight in critic.weights]
            for layer, weight, bias in zip(layers, critic.weights, critic.biases, strict=True):
                layer.weight.data, layer.bias.data = weight.data[k].T.clone(), bias.data[k, 0].clone()
            twins.append(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))
        inputs = torch.cat([batch.observations, batch.actions], dim=1)
        expected = torch.stack([twin(inputs).squeeze(1) for twin in twins])
        found = critic(batch.observations, batch.actions)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(critic.first(batch.observations, batch.actions), expected[0])
        found.square().sum().backward()
        expected.square().sum().backward()
        for k, twin in enumerate(twins):
            torch.testing.assert_close(critic.weights[1].grad[k], twin[2].weight.grad.T)

    def test_leading_dimensions(self):
        critic, batch = TwinCritic(4, 8), random_batch(6, 5)
        found = critic(batch.observations, batch.actions)
        assert found.shape == (2, 6, 5)
        torch.testing.assert_close(found[:, 3], critic(batch.observations[3], batch.actions[3]))


class TestLosses:
    def test_target_by_hand(self):
        """r + gamma min(Q1', Q2') with smoothed and clipped actions, 0 after a termination (eq. 10 and 14)."""
        recipe, batch = build_recipe(*SMALL), random_batch(64)
        for copied in (recipe.target_actor, recipe.target_critic):
            for parameter in copied.parameters():
                nn.init.normal_(parameter)
        torch.manual_seed(1)
        loss = recipe.critic_loss(batch)
        torch.manual_seed(1)
        noise = (torch.randn(64, 1) * 0.2).clip(-0.5, 0.5)
        following = recipe.target_critic(
            batch.next_observations, (recipe.target_actor(batch.next_observations) + noise).clip(-1, 1)
        )
        target = 0.1 * batch.rewards + 0.98 * batch.going_on * torch.minimum(following[0], following[1])
        first, second = recipe.critic(batch.observations, batch.actions)
        expected = nn.functional.mse_loss(first, target) + nn.functional.mse_loss(second, target)
        torch.testing.assert_close(loss, expected)
        assert (batch.going_on == 0).any()

    def test_actor_loss_is_the_first_critics_value(self):
        recipe, batch = build_recipe(*SMALL), random_batch(16)
        actions = recipe.actor(batch.observations)
        expected = -recipe.critic(batch.observations, actions)[0].mean()
        torch.testing.assert_close(recipe.actor_loss(batch), expected)
        wanted = torch.autograd.grad(expected, list(recipe.actor.parameters()))
        found = torch.autograd.grad(recipe.actor_loss(batch), list(recipe.actor.parameters()))
        torch.testing.assert_close(found, wanted)


class TestFlow:
    def flow(self, *overrides: str) -> dict[str, dict[str, float | None]]:
        recipe, batch = build_recipe(*SMALL, *overrides), random_batch(16)
        return {
            loss: norms(getattr(recipe, loss)(batch), recipe.parameter_groups())
            for loss in ("critic_loss", "actor_loss")
        }

    @pytest.mark.parametrize("network", ["average", "online"])
    @pytest.mark.parametrize("strategy", CUTS)
    def test_default(self, strategy, network):
        found = self.flow(f"stop.target={strategy}", f"stop.target_network={network}")
        assert found["critic_loss"]["critic"] > 0
        assert found["critic_loss"]["actor"] is None
        assert found["actor_loss"]["actor"] > 0
        assert found["actor_loss"]["critic"] is None

    def test_residual_reaches_the_actor_and_a_cut_action_does_not(self):
        assert self.flow("stop.target=none", ONLINE)["critic_loss"]["actor"] > 0
        batch, cut, open_, short = random_batch(16), [], [], []
        for overrides, found in (([], cut), (["stop.target=none"], open_), (["stop.target_cut=action"], short)):
            recipe = build_recipe(*SMALL, ONLINE, *overrides)
            torch.manual_seed(1)
            loss = recipe.critic_loss(batch)
            found += torch.autograd.grad(loss, list(recipe.critic.parameters()))
            assert (norms(recipe.critic_loss(batch), {"actor": recipe.actor})["actor"] is None) == (found is not open_)
        torch.testing.assert_close(short, open_)  # to the critic: the whole of the residual gradient
        assert not torch.allclose(short[0], cut[0])

    def test_cut_action_leaves_the_actor_exactly_nothing(self):
        found = self.flow("stop.action=detach", "stop.critic=none")["actor_loss"]
        assert found["actor"] is None
        assert found["critic"] > 0
        assert self.flow("stop.action=scale:0")["actor_loss"]["actor"] == 0.0

    def test_no_grad_around_the_critic_has_nothing_to_go_back_through(self):
        recipe = build_recipe(*SMALL, "stop.action=no_grad")
        assert not recipe.actor_loss(random_batch(16)).requires_grad


class TestBitIdentity:
    def test_every_cut_gives_the_same_weights(self):
        for network in ("average", "online"):
            reference = trained(3, f"stop.target_network={network}")
            for strategy in CUTS[1:]:
                assert equal(reference, trained(3, f"stop.target_network={network}", f"stop.target={strategy}")), (
                    strategy
                )

    def test_live_copies_are_waste_and_nothing_else(self):
        assert equal(trained(3), trained(3, "stop.target=none"))
        assert not equal(trained(3, ONLINE), trained(3, ONLINE, "stop.target=none"))

    def test_critic_left_live_is_waste_where_zeroed_in_time(self):
        reference = trained(3)
        assert equal(reference, trained(3, "stop.zero_grad=late"))  # nothing is left behind
        live = trained(3, "stop.critic=none")
        assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), live.parameters(), strict=True))
        assert not equal(reference, trained(3, "stop.critic=none", "stop.zero_grad=late"))

    def test_cut_action_leaves_the_actor_where_it_was(self):
        assert equal(trained(0).actor, trained(3, "stop.action=detach", "stop.critic=none").actor)
        assert not equal(trained(0).actor, trained(3).actor)


def test_delay_and_averages():
    recipe = build_recipe(*SMALL)
    assert not any(p.requires_grad for p in (*recipe.target_actor.parameters(), *recipe.target_critic.parameters()))
    recipe = trained(3, "recipe.policy_delay=3", "recipe.tau=1")  # 12 updates
    for target, network in ((recipe.target_actor, recipe.actor), (recipe.target_critic, recipe.critic)):
        same = [torch.equal(a, b) for a, b in zip(target.parameters(), network.parameters(), strict=True)]
        assert all(same)  # tau = 1: the copies are the networks as of the actor's last update
    optimizers = recipe.optimizers()
    assert [{int(s["step"]) for s in optimizer.state.values()} for optimizer in optimizers] == [{4}, {12}]


class TestReplay:
    def test_oldest_are_replaced_and_all_are_drawn(self):
        replay = Replay(10, 3, 1)
        whole = random_batch(14)
        replay.add(Transitions(*(part[:7] for part in whole)))
        assert len(replay) == 7
        replay.add(Transitions(*(part[7:] for part in whole)))
        assert (len(replay), replay.count) == (10, 14)
        drawn = replay.sample(50, 40, generator=torch.Generator().manual_seed(0))
        assert drawn.observations.shape == (50, 40, 3)
        assert set(drawn.rewards.flatten().tolist()) == set(whole.rewards[4:].tolist())
        row = (whole.rewards == drawn.rewards[7, 7]).nonzero().item()
        for part, parts in zip(drawn, whole, strict=True):
            assert torch.equal(part[7, 7], parts[row])

    def test_state(self):
        replay, other = Replay(10, 3, 1), Replay(10, 3, 1)
        replay.add(random_batch(7))
        other.load_state_dict(replay.state_dict())
        draws = [each.sample(9, generator=torch.Generator().manual_seed(0)) for each in (replay, other)]
        assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


class Line(gymnasium.Env):
    """Observes the steps so far; terminates at 3, or is truncated at ``limit``. The action's bounds are uneven."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,))
    action_space = gymnasium.spaces.Box(np.array([0.0, -4.0], np.float32), np.array([2.0, 4.0], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.step_count += 1
        return np.full(1, self.step_count, np.float32), float(action.sum()), self.step_count == 3, False, {}


gymnasium.register("Line-v0", Line)
gymnasium.register("ShortLine-v0", Line, max_episode_steps=2)


class TestExperience:
    def filled(self, id: str, policy=None) -> Replay:
        replay = Replay(100, 1, 2)
        experience = Experience(VectorEnvironment(id, 2), replay, policy, batch_size=4, updates=12, warmup=0, length=1)
        (batch,) = experience
        assert batch.observations.shape == (12, 4, 1)
        return replay

    @pytest.mark.parametrize(("id", "last", "going_on"), [("Line-v0", 3, 0.0), ("ShortLine-v0", 2, 1.0)])
    def test_termination_ends_the_return_and_truncation_does_not(self, id, last, going_on):
        """Every transition goes one on, none crosses a reset, and the step that resets is none."""
        rows = self.filled(id).table[:8]
        observations, following, continuing = rows[:, 0], rows[:, 4], rows[:, 5]
        assert torch.equal(following, observations + 1)
        assert following.max() == last
        assert torch.equal(continuing, torch.where(following == last, going_on, 1.0))

    def test_actions_are_scaled_to_uneven_bounds(self):
        rows = self.filled("Line-v0", lambda seen, generator: torch.tensor([[-1.0, 0.5]]).expand(len(seen), 2)).table
        assert torch.equal(rows[0, 1:3], torch.tensor([-1.0, 0.5]))  # as the policy gave it
        assert rows[0, 3] == 0.0 + 2.0  # as the environment got it
        environments = VectorEnvironment("Line-v0", 1)
        assert unscaled(environments, torch.tensor([[0.0, 1.0]])).tolist() == [[1.0, 4.0]]

    def test_warmup_is_random_and_only_once(self):
        data = ReplayedEnvironments(warmup=40, num_envs=10, updates_per_step=10, steps=3)
        data.setup("fit")
        asked = []
        data.policy = lambda seen, generator: asked.append(len(seen)) or torch.zeros(len(seen), 1)
        experience = data.train_dataloader()
        list(experience)
        assert asked == [10, 10, 10]
        assert experience.replay.count == 70
        assert (experience.replay.table[:40, 3] != 0).all()
        assert (experience.replay.table[40:70, 3] == 0).all()

    def test_noise_is_the_environments_own(self):
        recipe = build_recipe(*SMALL)
        before = torch.get_rng_state()
        actions = [recipe.explore(torch.zeros(5, 3), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(actions[0], actions[1])
        assert not torch.equal(actions[0], actions[2])


@pytest.mark.parametrize(
    ("override", "message"),
    {
        "data.id=CartPole-v1": "data.id=CartPole-v1: actions are Discrete; choose an environment with Box actions",
        "data.id=Pendulun-v1": "data.id=Pendulun-v1: .*Pendulum.*",
        "data.warmup=200000": "data.warmup=200000: the buffer holds data.capacity=100000",
        "data.num_envs=3": "data.updates_per_step=10: choose a multiple of data.num_envs=3",
        "recipe.tau=2": "recipe.tau=2: input should be less than or equal to 1",
        "stop.action=no_grad": "stop.action=no_grad: with stop.critic=freeze nothing learns; add stop.critic=none",
    }.items(),
)
def test_bad_input(override, message, tmp_path):
    ran = train("recipe=td3", override, cwd=tmp_path)
    assert ran.returncode in (1, 2)
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch("error: " + message, line), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_pendulum_is_learnt_and_a_live_critic_or_a_cut_action_ends_that():
    assert min(final("td3", "no_grad", "evaluation_return")) > -300
    for arm in ("critic-none-late", "action-detach", "residual"):
        assert max(final("td3", arm, "evaluation_return")) < -900, arm
