"""SAC: entropy and temperature in closed form; what each missing cut leaves of the two losses, to rounding."""

import math

import pytest
import torch

from conf_tests.helpers import build_recipe, final

BATCH = torch.zeros(1)


def placed(seed, *overrides):
    recipe = build_recipe("recipe=sac", *overrides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in recipe.parameters():
            parameter.copy_(torch.randn((), generator=generator, dtype=torch.float64))
    return recipe


def joint(recipe):
    """The gradient after both backwards: by mean, log sigma and log alpha."""
    loss = recipe.actor_loss(BATCH) + recipe.alpha_loss(BATCH)
    of = [recipe.policy.mean, recipe.policy.log_std, recipe.temperature.log_alpha]
    return [float(g) for g in torch.autograd.grad(loss, of)]


def trained(steps, *overrides):
    recipe = build_recipe("recipe=sac", *overrides)
    optimizer = recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.actor_loss(BATCH).backward()
        recipe.alpha_loss(BATCH).backward()
        optimizer.step()
    entropy = recipe.policy.log_std.item() + math.log(2 * math.pi * math.e) / 2
    return entropy, recipe.temperature().item(), abs(recipe.policy.mean.item())


def test_it_ends_in_closed_form():
    """9a: alpha = sigma^2 = exp(2 H) / (2 pi e)."""
    entropy, alpha, error = trained(1500)
    assert entropy == pytest.approx(0.5, abs=1e-4)
    assert alpha == pytest.approx(math.exp(1) / (2 * math.pi * math.e), abs=1e-4)
    assert error < 1e-6


@pytest.mark.parametrize("overrides", [["stop.log_prob=none"], ["stop.alpha=none"]])
def test_without_a_cut_alpha_has_no_end(overrides):
    assert trained(800, *overrides)[1] > 1e3


@pytest.mark.parametrize("seed", range(5))
class TestGradient:
    def test_with_both_cuts(self, seed):
        recipe = placed(seed)
        mean, sigma, alpha = recipe.policy.mean.item(), recipe.policy.log_std.exp().item(), recipe.temperature().item()
        entropy = math.log(sigma) + math.log(2 * math.pi * math.e) / 2
        assert joint(recipe) == pytest.approx([mean, sigma**2 - alpha, alpha * (entropy - 0.5)], rel=1e-9, abs=1e-9)

    def test_with_the_logarithm_live_the_entropy_cancels(self, seed):
        """What is left at the policy is Q's gradient alone."""
        recipe = placed(seed, "stop.log_prob=none")
        mean, variance = recipe.policy.mean.item(), recipe.policy.log_std.exp().item() ** 2
        assert joint(recipe)[:2] == pytest.approx([mean, variance], rel=1e-9, abs=1e-9)

    def test_with_alpha_live_nothing_of_the_policy_is_in_it(self, seed):
        recipe = placed(seed, "stop.alpha=none")
        assert joint(recipe)[2] == pytest.approx(-0.5 * recipe.temperature().item(), rel=1e-9)

    def test_without_its_sample_the_policy_learns_nothing(self, seed):
        """9b: of Q; and the score's mean is 0."""
        recipe = placed(seed, "stop.action=detach")
        assert joint(recipe)[:2] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.long
def test_alpha_ends_only_with_both_cuts():
    assert final("sac", "paper", "alpha") == pytest.approx([0.15915] * 3, abs=1e-4)
    for arm in ("log-prob-live", "alpha-live", "both-live"):
        assert min(final("sac", arm, "alpha")) > 1e3, arm
    assert final("sac", "action-cut", "action_error") == pytest.approx([1] * 3)
