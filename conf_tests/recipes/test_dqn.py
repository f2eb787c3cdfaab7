"""The DQN recipe: its loss and gradients against hand-made ones, each cut bit for bit, the copy, choices replayed."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from conf_tests.helpers import build_recipe, final, train
from recipes.dqn import CUTS, DQN
from recipes.parts.environments import VectorEnvironment
from recipes.parts.replay import Experience, Replay, ReplayedEnvironments, Transitions, unscaled

ONLINE = "stop.target_network=online"
SMALL = ["recipe=dqn", "recipe.width=8"]
FACTOR = {**dict.fromkeys(CUTS, 0.0), "none": 1.0, "scale:0.25": 0.25, "reverse:0.5": -0.5}


def random_batch(*shape: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations, following = torch.randn(2, *shape, 4, generator=generator)
    actions = torch.randint(2, (*shape, 1), generator=generator).float()
    going_on = (torch.rand(*shape, generator=generator) < 0.8).float()
    return Transitions(observations, actions, torch.randn(*shape, generator=generator), following, going_on)


def apart(recipe: DQN) -> DQN:
    """With a copy that is another network, as it is in mid-training."""
    torch.manual_seed(1)
    for parameter in recipe.target_network.parameters():
        nn.init.normal_(parameter)
    return recipe


def trained(steps: int, *overrides: str) -> DQN:
    """The recipe after ``steps`` batches of 4 updates of the very training_step, without Lightning around it."""
    recipe = build_recipe(*SMALL, "recipe.period=3", *overrides)
    optimizer = recipe.configure_optimizers()
    optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    for k in range(steps):
        recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=k)
        recipe.log = lambda *args, **options: None
        recipe.training_step(random_batch(4, 16, seed=k), k)
    return recipe


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def gradients(value: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(network.parameters()), retain_graph=True))


class TestLoss:
    @pytest.mark.parametrize("double", [False, True])
    @pytest.mark.parametrize("online", [False, True])
    def test_by_hand(self, double, online):
        """Each transition by itself: the target, the action that it takes, and the mean of the squares."""
        recipe = apart(build_recipe(*SMALL, f"recipe.double={double}", *([ONLINE] if online else [])))
        batch, errors, other = random_batch(32), [], 0
        copy = recipe.network if online else recipe.target_network
        for seen, action, reward, later, going_on in zip(*batch, strict=True):
            values, choices = copy(later), recipe.network(later)
            best = values[choices.argmax()] if double else values.max()
            other += int(choices.argmax() != values.argmax())
            target = reward + (0.99 * best if going_on else 0)
            errors.append(target - recipe.network(seen)[int(action)])
        torch.testing.assert_close(recipe.q_loss(batch), torch.stack(errors).square().mean())
        assert (other > 0) != online  # the copy would have chosen otherwise

    @pytest.mark.parametrize("strategy", FACTOR)
    def test_gradient_by_hand(self, strategy):
        """2 delta (a gamma grad max Q(s') - grad Q(s, a)) of one transition, with no copy between."""
        recipe = build_recipe(*SMALL, ONLINE, f"stop.target={strategy}")
        batch = Transitions(*(part[:1] for part in random_batch(4)))
        assert batch.going_on == 1
        now, best = recipe.network(batch.observations)[0, int(batch.actions)], recipe.network(batch.next_observations)
        delta = batch.rewards + 0.99 * best.max() - now
        parts = zip(gradients(now, recipe.network), gradients(best.max(), recipe.network), strict=True)
        expected = [2 * delta * (FACTOR[strategy] * 0.99 * later - here) for here, later in parts]
        for found, wanted in zip(gradients(recipe.q_loss(batch), recipe.network), expected, strict=True):
            torch.testing.assert_close(found, wanted)

    def test_leading_dimensions(self):
        recipe, batch = apart(build_recipe(*SMALL, "recipe.double=true")), random_batch(6, 5)
        rows = [recipe.q_loss(Transitions(*(part[k] for part in batch))) for k in range(6)]
        torch.testing.assert_close(recipe.q_loss(batch), torch.stack(rows).mean())


def test_each_update_is_by_its_own_loss_alone():
    by_hand = build_recipe(*SMALL)
    optimizer, parameters = by_hand.configure_optimizers(), list(by_hand.network.parameters())
    for update, parts in enumerate(zip(*random_batch(4, 16), strict=True), start=1):
        loss = by_hand.q_loss(Transitions(*parts))
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if update == 3:
            by_hand.target_network.load_state_dict(by_hand.network.state_dict())
    assert equal(by_hand, trained(1))


class TestBitIdentity:
    def test_every_cut_gives_the_same_weights(self):
        for more in ([], [ONLINE], ["recipe.double=true"]):
            reference = trained(3, *more)
            for strategy in CUTS[1:]:
                assert equal(reference, trained(3, *more, f"stop.target={strategy}")), (strategy, more)

    def test_behind_a_copy_a_missing_cut_is_waste_and_nothing_else(self):
        assert equal(trained(3), trained(3, "stop.target=none"))
        assert equal(trained(3, "recipe.double=true"), trained(3, "recipe.double=true", "stop.target=none"))
        assert not equal(trained(3, ONLINE), trained(3, ONLINE, "stop.target=none"))

    def test_double_is_no_double_without_a_copy(self):
        assert equal(trained(3, ONLINE), trained(3, ONLINE, "recipe.double=true"))
        assert not equal(trained(20), trained(20, "recipe.double=true"))


class TestCopy:
    def test_is_the_network_of_the_last_move(self):
        recipe = trained(3)  # 12 updates, a move each third
        assert equal(recipe.target_network, recipe.network)
        recipe = trained(2)  # 8 updates: two more since the last move
        assert not equal(recipe.target_network, recipe.network)
        assert not any(parameter.requires_grad for parameter in recipe.target_network.parameters())
        assert all(parameter.requires_grad for parameter in trained(0, "stop.target=none").target_network.parameters())

    def test_follows_by_tau(self):
        recipe, start = trained(1, "recipe.period=4", "recipe.tau=0.25"), trained(0)
        pairs = zip(start.network.parameters(), recipe.network.parameters(), strict=True)
        for (old, new), found in zip(pairs, recipe.target_network.parameters(), strict=True):
            torch.testing.assert_close(found, 0.75 * old + 0.25 * new)


class TestChoices:
    def test_replayed_as_they_were_acted(self):
        """CartPole's cart goes to the side that the action names."""
        environments = VectorEnvironment("CartPole-v1", 10, seed=3)
        data = ReplayedEnvironments(id="CartPole-v1", num_envs=10, updates_per_step=10, warmup=200, batch_size=4)
        data.setup("fit")
        experience = data.train_dataloader()
        (batch,) = experience
        assert batch.actions.shape == (10, 4, 1)
        rows = experience.replay.table[:200]
        push = (rows[:, 7] - rows[:, 1]).sign()  # of the cart's velocity
        assert torch.equal(push, rows[:, 4] * 2 - 1)
        assert set(rows[:, 4].tolist()) == {0.0, 1.0}
        assert unscaled(environments, torch.tensor([[1.0], [0.0]])).tolist() == [1, 0]
        assert environments.choices == 2

    def test_a_policys_choice_is_what_is_done(self):
        replay = Replay(100, 4, 1)
        one = Experience(
            VectorEnvironment("CartPole-v1", 2),
            replay,
            lambda seen, generator: torch.ones(len(seen), 1),
            batch_size=2,
            updates=10,
            warmup=0,
            length=1,
        )
        list(one)
        assert (replay.table[: len(replay), 4] == 1).all()
        assert (replay.table[: len(replay), 7] > replay.table[: len(replay), 1]).all()

    def test_exploration_falls_to_epsilon(self):
        recipe, seen = build_recipe(*SMALL, "recipe.exploration_steps=100"), torch.zeros(20_000, 4)
        best = recipe.network(seen[:1]).argmax().item()
        before = torch.get_rng_state()
        for step, share in ((0, 1.0), (50, 0.5), (1000, 0.05)):
            recipe.trainer = SimpleNamespace(global_step=step)
            actions = recipe.explore(seen, torch.Generator().manual_seed(0))
            assert actions.shape == (20_000, 1)
            assert (actions != best).float().mean().item() == pytest.approx(share / 2, abs=0.015)
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("override", "message"),
    {
        "data.id=Pendulum-v1": "data.id=Pendulum-v1: actions are Box; choose an environment with Discrete actions",
        "recipe.tau=2": "recipe.tau=2: input should be less than or equal to 1",
        "recipe.period=0": "recipe.period=0: input should be greater than 0",
    }.items(),
)
def test_bad_input(override, message, tmp_path):
    ran = train("recipe=dqn", override, cwd=tmp_path)
    assert ran.returncode in (1, 2)
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch("error: " + message, line), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_without_the_copy_q_runs_away_unless_the_cut_is_missing_too():
    for arm in ("no_grad", "target-none", "residual", "double", "polyak"):
        assert max(final("dqn", arm, "q")) < 120, arm
    assert min(final("dqn", "online", "q")) > 1e3
