"""The variational recipe: its densities against PyTorch's, and mean and variance of its gradients by exact cubature."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from conf_tests.helpers import build_recipe, final
from recipes.parts.noise import Noise
from recipes.variational import CLOSED, log_density

RECIPE = "recipe=variational"
WRONG = ["stop.score=none", "stop.sample=detach"]
SCORES = {"detach": 0, "data": 0, "none": 1, "scale:0.5": 0.5, "reverse:1": -1}


def placed(share, *overrides):
    """A recipe whose q has this share of the posterior's mean, log diagonal and rest of C: at 1 it is the posterior."""
    recipe = build_recipe(RECIPE, *overrides)
    mean, precision = recipe.posterior()
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    with torch.no_grad():
        recipe.q.mean.copy_(share * mean)
        recipe.q.log_diagonal.copy_(share * factor.diagonal().log())
        recipe.q.below.copy_(share * factor.tril(-1))
    return recipe


def gradient(recipe, noise):
    gradients = torch.autograd.grad(recipe.elbo_loss(noise), list(recipe.q.parameters()))
    return torch.cat([part.flatten() for part in gradients])


def cubature():
    """Draws (81, 4) and weights (81,) that integrate exactly: 3 nodes in each direction do for a degree of 5."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = torch.tensor(list(itertools.product(nodes, repeat=4)))
    return grid, torch.tensor([np.prod(each) for each in itertools.product(weights / weights.sum(), repeat=4)])


def moments(recipe):
    """Mean, and variance summed over all, of the gradient of one draw, whose square is of degree 4: exactly."""
    grid, weights = cubature()
    gradients = torch.stack([gradient(recipe, point[None]) for point in grid])
    mean = weights @ gradients
    return mean, float(weights @ (gradients - mean).square().sum(1))


class TestAtThePosterior:
    """Where q is exact, the landing's gradient is 0 for every draw, and so is the error of its loss."""

    def test_the_variance_is_0_and_with_the_score_it_is_fishers_information(self):
        assert moments(placed(1))[1] < 1e-20
        _, precision = placed(1).posterior()
        diagonal = precision.diagonal()
        spread = torch.linalg.cholesky(torch.linalg.inv(precision)).diagonal()
        mean, below, log_diagonal = (
            diagonal.sum(),
            diagonal @ torch.arange(4.0).double(),
            (spread**2 * diagonal + 1).sum(),
        )
        information = float(mean + below + log_diagonal)  # E of the squared score, parameter by parameter
        assert information > 10
        assert moments(placed(1, "stop.score=none"))[1] == pytest.approx(information, rel=1e-9)

    @pytest.mark.parametrize(("score", "part"), SCORES.items())
    def test_a_part_of_the_score_has_its_square_of_the_variance(self, score, part):
        whole = moments(placed(1, "stop.score=none"))[1]
        assert moments(placed(1, f"stop.score={score}"))[1] == pytest.approx(part**2 * whole, rel=1e-9, abs=1e-20)

    def test_every_draw_gives_the_evidence(self):
        recipe = placed(1)
        covariance = recipe.x @ recipe.x.T + recipe.variance * torch.eye(40, dtype=torch.float64)
        evidence = MultivariateNormal(torch.zeros(40, dtype=torch.float64), covariance).log_prob(recipe.y)
        for draw in Noise(dimensions=4).held_out[:5]:
            assert recipe.elbo_loss(draw[None]).item() == pytest.approx(-evidence.item(), rel=1e-12)
        grid, weights = cubature()
        closed = placed(1, "stop.entropy=closed")  # no draw gives it, and all together do
        whole = weights @ torch.stack([closed.elbo_loss(draw[None]) for draw in grid])
        assert whole.item() == pytest.approx(-evidence.item(), rel=1e-12)


class TestAnywhere:
    @pytest.mark.parametrize("share", [0, 0.5, 0.9, 1.3])
    def test_every_estimator_has_the_same_mean(self, share):
        """That of the KL divergence, by autograd: all but the one whose sample is cut."""
        exact = placed(share)
        mean, precision = exact.posterior()
        q = MultivariateNormal(exact.q.mean, scale_tril=exact.q.factor())
        divergence = kl_divergence(q, MultivariateNormal(mean, precision_matrix=precision))
        assert exact.kl().item() == pytest.approx(divergence.item(), rel=1e-9)
        parts = torch.autograd.grad(divergence, list(exact.q.parameters()))
        truth = torch.cat([part.flatten() for part in parts])
        for score in SCORES:
            torch.testing.assert_close(moments(placed(share, f"stop.score={score}"))[0], truth, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(moments(placed(share, *WRONG))[0], truth, rtol=1e-2)

    def test_with_the_sample_cut_it_is_that_of_the_mode(self):
        """The entropy's gradient is missing, 1 in each log diagonal."""
        right, wrong = (moments(placed(0.9, *arm))[0] for arm in ([], WRONG))
        expected = torch.cat([torch.zeros(4), torch.ones(4), torch.zeros(16)]).double()  # mean, log diagonal, below
        torch.testing.assert_close(wrong - right, expected, rtol=0, atol=1e-8)

    def test_the_cut_is_a_gain_near_the_posterior_and_a_loss_where_q_is_too_narrow(self):
        with_cut, without = ([moments(placed(t, f"stop.score={s}"))[1] for t in (0.9, 1.3)] for s in ("detach", "none"))
        assert with_cut[0] < without[0] / 4
        assert with_cut[1] > without[1] * 5

    @pytest.mark.parametrize("share", [0, 0.7, 1, 1.3])
    def test_with_the_score_it_is_the_closed_form(self, share):
        noise = Noise(dimensions=4).held_out
        total, closed = (placed(share, arm) for arm in ("stop.score=none", "stop.entropy=closed"))
        for draw in noise[:5]:
            torch.testing.assert_close(gradient(total, draw[None]), gradient(closed, draw[None]), rtol=1e-9, atol=1e-9)
        assert closed.FLOW is CLOSED


class TestParts:
    def test_densities(self):
        recipe, noise = placed(0.7), Noise(dimensions=4).held_out
        z, mean, factor = recipe.q(noise)
        torch.testing.assert_close(
            log_density(z, mean, factor), MultivariateNormal(mean, scale_tril=factor).log_prob(z)
        )
        likelihood = Independent(Normal(z @ recipe.x.T, recipe.variance**0.5), 1).log_prob(recipe.y)
        prior = Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)
        torch.testing.assert_close(recipe.log_joint(z), likelihood + prior)

    def test_logged_variance_is_that_of_the_draws(self):
        recipe, noise = placed(0.9, "stop.score=none"), Noise(dimensions=4).held_out
        with torch.inference_mode():
            logged = recipe.gradient_variance(noise.clone())
        draws = torch.stack([gradient(recipe, draw[None]) for draw in noise])
        assert logged.item() == pytest.approx((draws - draws.mean(0)).square().sum().item() / 63, rel=1e-9)
        assert all(parameter.grad is None for parameter in recipe.parameters())

    def test_a_diagonal_q_stays_so(self):
        recipe = build_recipe(RECIPE, "recipe.family=diagonal")
        assert [name for name, _ in recipe.q.named_parameters()] == ["mean", "log_diagonal"]
        assert recipe.q.factor().count_nonzero() == 4

    def test_the_same_judge_for_every_seed(self):
        one, other = (Noise(dimensions=3, pool=50, seed=seed) for seed in (0, 1))
        assert torch.equal(one.held_out, other.held_out)
        assert not torch.equal(one.noise, other.noise)
        assert next(iter(one.val_dataloader())).shape == (64, 3)


@pytest.mark.long
def test_without_the_score_q_lands_and_with_it_hovers():
    assert max(final("variational", "landing", "gradient_variance")) < 1e-20
    assert max(final("variational", "landing", "kl")) < 1e-12
    assert min(final("variational", "total", "gradient_variance")) > 10
    assert min(final("variational", "total", "kl")) > 0.01
    assert min(final("variational", "sample", "kl")) > 1
