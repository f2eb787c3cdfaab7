"""SAC on Pendulum: its losses against hand-made numbers; what leaks is waste if zeroed in time, and used if not."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from conf_tests.helpers import build_recipe, final, norms, train
from recipes.parts.replay import Transitions
from recipes.sac_pendulum import BOUNDARIES, SoftActorCritic, drawn, log_prob

SMALL = ["recipe=sac_pendulum", "recipe.width=8"]
LEAKS = {"target": "none", "critic": "none", "alpha": "none", "log_prob": "none"}


def random_batch(*shape: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations, following = torch.randn(2, *shape, 3, generator=generator)
    actions = torch.rand(*shape, 1, generator=generator) * 2 - 1
    going_on = (torch.rand(*shape, generator=generator) < 0.8).float()
    return Transitions(observations, actions, torch.randn(*shape, generator=generator), following, going_on)


def trained(steps: int, *overrides: str, updates: int = 4) -> SoftActorCritic:
    """The recipe after so many batches of its very training_step, without Lightning around it."""
    recipe = build_recipe(*SMALL, *overrides)
    optimizers = recipe.configure_optimizers()
    for optimizer in optimizers:
        optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizers
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    torch.manual_seed(0)
    for k in range(steps):
        recipe.training_step(random_batch(updates, 16, seed=k), k)
    return recipe


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def with_noise(seed, loss, batch):
    torch.manual_seed(seed)
    return loss(batch)


class TestLosses:
    def test_probability_is_that_of_torch(self):
        mean, log_std, u = torch.randn(3, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        law = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
        torch.testing.assert_close(log_prob((mean, log_std), u), law.log_prob(u.tanh()).sum(-1))

    def test_target_by_hand(self):
        """r + gamma (min Q' - alpha log pi), 0 after a termination."""
        recipe, batch = build_recipe(*SMALL), random_batch(64)
        for parameter in (*recipe.target_critic.parameters(), recipe.temperature.log_alpha):
            nn.init.normal_(parameter)
        loss = with_noise(1, recipe.critic_loss, batch)
        mean, log_std = recipe.actor(batch.next_observations)
        torch.manual_seed(1)
        u = mean + log_std.exp() * torch.randn(64, 1)
        entropy = -TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(u.tanh()).squeeze(1)
        first, second = recipe.target_critic(batch.next_observations, u.tanh())
        following = torch.minimum(first, second) + recipe.temperature.log_alpha.exp() * entropy
        target = 0.1 * batch.rewards + 0.98 * batch.going_on * following
        errors = [nn.functional.mse_loss(q, target) for q in recipe.critic(batch.observations, batch.actions)]
        torch.testing.assert_close(loss, sum(errors))
        assert (batch.going_on == 0).any()

    def test_actor_and_temperature_by_hand(self):
        recipe, batch = build_recipe(*SMALL), random_batch(64)
        recipe.temperature.log_alpha.data.fill_(-0.7)
        mean, log_std = recipe.actor(batch.observations)
        torch.manual_seed(2)
        u = mean + log_std.exp() * torch.randn(64, 1)
        logs = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(u.tanh()).squeeze(1)
        values = recipe.critic(batch.observations, u.tanh()).amin(0)
        actor = (math.exp(-0.7) * logs - values).mean()
        torch.testing.assert_close(with_noise(2, recipe.actor_loss, batch), actor, rtol=1e-4, atol=1e-5)
        alpha = -math.exp(-0.7) * (logs.mean() - 1)  # the target entropy of one number: -1
        torch.testing.assert_close(with_noise(2, recipe.alpha_loss, batch), alpha, rtol=1e-4, atol=1e-5)
        wanted = torch.autograd.grad(actor, list(recipe.actor.parameters()))
        found = torch.autograd.grad(with_noise(2, recipe.actor_loss, batch), list(recipe.actor.parameters()))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


class TestFlow:
    def flow(self, *overrides: str) -> dict[str, dict[str, float | None]]:
        recipe, batch = build_recipe(*SMALL, *overrides), random_batch(16)
        losses = ("critic_loss", "actor_loss", "alpha_loss")
        return {loss: norms(getattr(recipe, loss)(batch), recipe.parameter_groups()) for loss in losses}

    @pytest.mark.parametrize("target", BOUNDARIES["target"][:-1])
    def test_each_loss_moves_its_own(self, target):
        found = self.flow(f"stop.target={target}")
        for loss, of in found.items():
            own = loss.removesuffix("_loss")
            assert of.pop(own) > 0
            assert set(of.values()) == {None}, loss

    @pytest.mark.parametrize(
        ("boundary", "loss", "reached"),
        [
            ("target", "critic_loss", {"actor", "alpha"}),
            ("critic", "actor_loss", {"critic"}),
            ("alpha", "actor_loss", {"alpha"}),
            ("log_prob", "alpha_loss", {"actor"}),
        ],
    )
    def test_what_a_missing_cut_lets_through(self, boundary, loss, reached):
        found = self.flow(f"stop.{boundary}=none")[loss]
        own = loss.removesuffix("_loss")
        assert {name for name, norm in found.items() if norm} == reached | {own}

    @pytest.mark.parametrize("seed", range(5))
    def test_without_its_sample_only_the_score_is_left(self, seed):
        """9b: no gradient of Q. What is left is alpha times the score, whatever the critics are."""
        recipe, batch = build_recipe(*SMALL, "stop.action=detach"), random_batch(16, seed=seed)
        parameters = list(recipe.actor.parameters())
        before = torch.autograd.grad(with_noise(seed, recipe.actor_loss, batch), parameters)
        nn.init.normal_(recipe.critic.weights[1])
        after = torch.autograd.grad(with_noise(seed, recipe.actor_loss, batch), parameters)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    @pytest.mark.parametrize("seed", range(5))
    def test_both_entropy_terms_cancel(self, seed):
        """9a, with log pi live and the same noise: the policy hears of Q alone."""
        recipe, batch = build_recipe(*SMALL, "stop.log_prob=none"), random_batch(16, seed=seed)
        parameters = list(recipe.actor.parameters())
        total = with_noise(seed, recipe.actor_loss, batch) + with_noise(seed, recipe.alpha_loss, batch)
        torch.manual_seed(seed)
        alone = -recipe.critic(batch.observations, drawn(recipe.actor(batch.observations)).tanh()).amin(0).mean()
        found, wanted = torch.autograd.grad(total, parameters), torch.autograd.grad(alone, parameters)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("seed", range(5))
    def test_nothing_of_the_policy_is_left_in_a_live_alpha(self, seed):
        """9a, with alpha live and the same noise: d / d log alpha = -alpha H."""
        recipe, batch = build_recipe(*SMALL, "stop.alpha=none"), random_batch(16, seed=seed)
        recipe.temperature.log_alpha.data.fill_(0.3)
        total = with_noise(seed, recipe.actor_loss, batch) + with_noise(seed, recipe.alpha_loss, batch)
        (found,) = torch.autograd.grad(total, [recipe.temperature.log_alpha])
        assert found.item() == pytest.approx(-math.exp(0.3) * -1.0, rel=1e-4)


class TestBitIdentity:
    def test_every_cut_of_the_target_gives_the_same_weights(self):
        for step in ("apart", "together"):
            reference = trained(2, f"stop.step={step}")
            for target in BOUNDARIES["target"][1:-1]:
                assert equal(reference, trained(2, f"stop.step={step}", f"stop.target={target}")), target

    def test_leaks_are_waste_where_each_loss_is_learned_for_itself(self):
        reference = trained(3)
        assert equal(reference, trained(3, *(f"stop.{name}={choice}" for name, choice in LEAKS.items())))
        assert not equal(reference, trained(0))

    @pytest.mark.parametrize("leak", LEAKS)
    def test_each_leak_is_used_where_all_run_backward_before_a_step(self, leak):
        reference, leaky = (trained(1, "stop.step=together", *more) for more in ([], [f"stop.{leak}={LEAKS[leak]}"]))
        assert not equal(reference, leaky)

    def test_together_all_gradients_are_of_the_same_weights(self):
        """By hand; apart, the actor already hears of critics that have moved."""
        plain = ["recipe.optimizer._target_=torch.optim.SGD", "recipe.optimizer.lr=0.1"]
        start = build_recipe(*SMALL, *plain)
        batch = Transitions(*(part[0] for part in random_batch(1, 16)))
        torch.manual_seed(0)
        losses = [getattr(start, name)(batch) for name in ("critic_loss", "actor_loss", "alpha_loss")]
        groups = [list(module.parameters()) for module in start.parameter_groups().values()]
        moves = [torch.autograd.grad(loss, group) for loss, group in zip(losses, groups, strict=True)]
        for group, move in zip(groups, moves, strict=True):
            for parameter, gradient in zip(group, move, strict=True):
                parameter.data -= 0.1 * gradient
        together, apart = (trained(1, *plain, f"stop.step={step}", updates=1) for step in ("together", "apart"))
        for of in ("critic", "actor", "temperature"):
            ours, theirs = getattr(together, of).parameters(), getattr(start, of).parameters()
            torch.testing.assert_close(list(ours), list(theirs))
        assert equal(apart.critic, together.critic)
        assert not equal(apart.actor, together.actor)


def test_copies_follow_at_each_update():
    recipe = trained(1, "recipe.tau=1")
    assert not any(p.requires_grad for p in recipe.target_critic.parameters())
    assert equal(recipe.target_critic, recipe.critic)
    assert {int(s["step"]) for optimizer in recipe.optimizers() for s in optimizer.state.values()} == {4}


def test_noise_is_the_environments_own():
    recipe = build_recipe(*SMALL)
    before = torch.get_rng_state()
    actions = [recipe.explore(torch.zeros(5, 3), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(actions[0], actions[1])
    assert not torch.equal(actions[0], actions[2])
    assert actions[0].abs().max() < 1


def test_bad_input(tmp_path):
    ran = train("recipe=sac_pendulum", "data.id=CartPole-v1", cwd=tmp_path)
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch("error: data.id=CartPole-v1: actions are Discrete; .*", line), line


@pytest.mark.long
def test_pendulum_is_learnt_and_what_ends_that():
    for arm in ("apart", "leaks-apart", "together", "alpha-live", "target-live"):
        assert min(final("sac_pendulum", arm, "evaluation_return")) > -200, arm
    for arm in ("action-cut", "log-prob-live"):
        assert max(final("sac_pendulum", arm, "evaluation_return")) < -900, arm
    assert min(final("sac_pendulum", "log-prob-live", "alpha")) > 100
    assert max(final("sac_pendulum", "apart", "q")) < 0 < min(final("sac_pendulum", "critic-live", "q"))
