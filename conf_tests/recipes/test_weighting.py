"""Weighted losses: where each comes to rest with its weight cut and live, and the factor on its gradient, by hand."""

import math

import pytest
import torch

from conf_tests.helpers import build_recipe, final

LOGIT = {0.8: math.log(4), 0.95: math.log(19)}


def trained(name, *overrides, steps=400):
    recipe = build_recipe(f"recipe={name}", *overrides)
    optimizer = recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.weighted_loss(torch.zeros(1)).backward()
        optimizer.step()
    return recipe.theta().tolist()


def gradient(recipe, theta):
    theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(recipe.weighed(theta), [theta])[0].tolist()


class TestNormalised:
    """10a."""

    @pytest.mark.parametrize("theta", [-2.0, 0.3, 1.0])
    @pytest.mark.parametrize("scale", [1, 1000])
    def test_gradient_is_that_of_the_logarithms(self, theta, scale):
        recipe = build_recipe("recipe=weighting", f"recipe.scale={scale}")
        by_hand = sum(2 * (theta - c) / ((theta - c) ** 2 + 4) for c in (1, -1))
        assert gradient(recipe, [theta]) == pytest.approx([by_hand])
        live = build_recipe("recipe=weighting", f"recipe.scale={scale}", "stop.weight=none")
        assert gradient(live, [theta]) == pytest.approx([0], abs=1e-12)
        half = build_recipe("recipe=weighting", f"recipe.scale={scale}", "stop.weight=scale:0.5")
        assert gradient(half, [theta]) == pytest.approx([by_hand / 2])

    @pytest.mark.parametrize(
        ("overrides", "rest"),
        [([], 0), (["recipe.scale=1"], 0), (["recipe.scheme=raw"], -999 / 1001), (["stop.weight=none"], 0.3)],
    )
    def test_rest(self, overrides, rest):
        assert trained("weighting", *overrides) == pytest.approx([rest], abs=1e-3)


class TestFocal:
    """10b."""

    @pytest.mark.parametrize(("eta", "live"), [(0.8, 0.5177), (0.95, 1.0975)])
    def test_rest(self, eta, live):
        of = f"recipe.eta={eta}"
        assert trained("weighting_focal", of) == pytest.approx([LOGIT[eta] / 3], abs=1e-4)
        assert trained("weighting_focal", of, "recipe.gamma=4") == pytest.approx([LOGIT[eta] / 5], abs=1e-4)
        assert trained("weighting_focal", of, "recipe.gamma=0") == pytest.approx([LOGIT[eta]], abs=1e-4)
        assert trained("weighting_focal", of, "stop.weight=none") == pytest.approx([live], abs=1e-3)

    def test_loss_by_hand(self):
        recipe, theta = build_recipe("recipe=weighting_focal"), torch.tensor([0.7], dtype=torch.float64)
        p = 1 / (1 + math.exp(-0.7))
        by_hand = -0.8 * (1 - p) ** 2 * math.log(p) - 0.2 * p**2 * math.log(1 - p)
        assert recipe.weighed(theta).item() == pytest.approx(by_hand)


class TestCausal:
    """16b."""

    @pytest.mark.parametrize("theta", [[0.5, 0.5], [0.9, -1.0], [1.4, 1.0]])
    def test_factor_on_the_first_gradient(self, theta):
        first, later = (theta[0] - 1) ** 2, (theta[1] - 1) ** 2 + 4
        factor = 1 - math.exp(-first) * later
        recipes = [build_recipe("recipe=weighting_causal", f"stop.weight={each}") for each in ("detach", "none")]
        cut, live = (gradient(recipe, theta) for recipe in recipes)
        assert factor < 0
        assert cut[0] == pytest.approx(2 * (theta[0] - 1))
        assert live == pytest.approx([factor * cut[0], cut[1]])

    def test_rest(self):
        assert trained("weighting_causal") == pytest.approx([1, 1], abs=1e-3)
        live = trained("weighting_causal", "stop.weight=none")
        assert live == pytest.approx([1 - math.sqrt(math.log(4)), 1], abs=1e-3)

    def test_factor_that_is_logged(self):
        recipe = build_recipe("recipe=weighting_causal", "stop.weight=none")
        assert recipe.factor().item() == pytest.approx(1 - math.exp(-0.25) * 4.25)


class TestGradNorm:
    """10c, which shows nothing: the loss of the weights (2,) of two tasks, whose target is their mean gradient norm."""

    def gradient(self, weights, norms, progress, cut):
        weights = weights.clone().requires_grad_()
        lengths = weights * norms
        target = (lengths.detach() if cut else lengths).mean() * progress
        return torch.autograd.grad((lengths - target).abs().sum(), [weights])[0]

    @pytest.mark.parametrize("seed", range(40))
    def test_at_equal_progress_the_cut_changes_no_gradient(self, seed):
        weights, norms = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = [self.gradient(weights, norms, torch.ones(2), cut) for cut in (True, False)]
        torch.testing.assert_close(*found, rtol=1e-12, atol=0)
        assert found[0].abs().min() > 0

    @pytest.mark.parametrize("cut", [True, False])
    @pytest.mark.parametrize("seed", range(5))
    def test_renormalised_it_rests_where_lengths_are_as_their_progress(self, seed, cut):
        drawn = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        norms, progress = drawn[0], 2 * drawn[1] / drawn[1].sum()
        weights = torch.ones(2, dtype=torch.float64)
        for step in range(2000):
            weights = weights - 0.1 * 0.995**step * self.gradient(weights, norms, progress, cut)
            weights = 2 * weights / weights.sum()
        wanted = progress / norms
        torch.testing.assert_close(weights, 2 * wanted / wanted.sum(), rtol=1e-3, atol=0)


@pytest.mark.long
def test_a_live_weight_is_made_small():
    assert final("weighting", "live", "theta") == pytest.approx([0.3] * 3)
    assert final("weighting_focal", "live", "theta") == pytest.approx([0.5177] * 3, abs=1e-3)
    assert max(final("weighting_causal", "live", "factor")) < -1
