"""DMD: its gradient against that of the KL divergence, what the target's slope makes of it, and where it ends; SDS."""

import math

import pytest
import torch

from conf_tests.helpers import build_recipe, final, trained

RECIPE = "recipe=dmd"
LIVE = "stop.target=none"


def gradients(seed, *overrides):
    """Of the loss and, exactly, of KL(fake, real): at the mean and at the standard deviation."""
    recipe = build_recipe(RECIPE, f"seed={seed}", "recipe.learn_std=true", *overrides)
    mean, std = recipe.generator.mean, recipe.generator.std
    kl = ((std.square() + (mean - recipe.mean) ** 2) / recipe.std**2 - 1) / 2 - (std / recipe.std).log()
    return [torch.stack(torch.autograd.grad(each, [mean, std])) for each in (recipe.matching_loss(recipe.z), kl)]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        ([], 1),
        (["stop.target=no_grad"], 1),
        ([LIVE], 1 - 1 / 0.25),
        ([LIVE, "recipe.start_std=2"], 1 - 1 / 4),
        ([LIVE, "recipe.std=3"], 1 / 9 - 1 / 0.25),
        ([LIVE, "stop.prediction=detach"], -1 / 0.25),
        (["stop.target=scale:0.1"], 1 - 0.1 * 4),
    ],
)
def test_gradient_is_that_of_the_kl_times_a_factor(seed, overrides, factor):
    """1 where the target is cut, else 1 + a (1/s^2 - 1/sigma^2 - 1) or without the prediction's part."""
    found, exact = gradients(seed, *overrides)
    if overrides == [LIVE, "stop.prediction=detach"]:
        factor = 1 - 1 / 0.25 - 1
    torch.testing.assert_close(found, factor * exact, rtol=1e-9, atol=1e-12)


def test_loss_has_the_same_value_in_all():
    losses = {
        build_recipe(RECIPE, *o).matching_loss(torch.zeros(1)).item()
        for o in ([], [LIVE], [LIVE, "stop.prediction=detach"])
    }
    assert len(losses) == 1


@pytest.mark.parametrize("seed", range(3))
def test_where_it_ends(seed):
    learnt = trained(300, RECIPE, f"seed={seed}", "recipe.learn_std=true").generator
    assert learnt.mean.item() == pytest.approx(2, abs=1e-3)
    assert learnt.std.item() == pytest.approx(1, abs=1e-3)
    steps = [trained(n, RECIPE, f"seed={seed}", LIVE).generator.mean.item() for n in (60, 61)]
    assert abs(steps[1]) > 1000
    assert (steps[1] - 2) / (steps[0] - 2) == pytest.approx(1 + 0.05 * 3, rel=1e-9)
    hidden = trained(300, RECIPE, f"seed={seed}", LIVE, "recipe.start_std=2").generator
    assert hidden.mean.item() == pytest.approx(2, abs=1e-3)


def test_points_have_the_moments_of_a_normal():
    z = build_recipe(RECIPE).z
    assert z.mean().item() == pytest.approx(0, abs=1e-12)
    assert z.square().mean().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize("start", [-1.5, 0.5, 3.0])
def test_sds_comes_to_a_mode_with_the_denoisers_jacobian_or_without(jacobian, start):
    """What the cut of DreamFusion saves is work: with an exact denoiser of two modes, +-2, both ways find one.

    (derived here; expectation over the noise by quadrature)
    """
    nodes = torch.special.ndtri((torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    alphas = torch.cos(torch.linspace(0.05, 0.95, 10, dtype=torch.float64) * math.pi / 2)[:, None]
    sigmas = (1 - alphas.square()).sqrt()

    def residual(x):
        """eps_hat - eps, for the posterior mean of a mixture of N(+-2, .3^2)."""
        z = alphas * x + sigmas * nodes
        variance = 0.09 * alphas.square() + sigmas.square()
        share = torch.sigmoid(4 * alphas * z / variance)
        score = (alphas * 2 * (2 * share - 1) - z) / variance
        return -sigmas * score - nodes

    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    for _ in range(600):
        away = residual(x) if jacobian else residual(x).detach()
        loss = away.square().mean() / 2 if jacobian else (away * alphas * x).mean()
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x - 0.1 * gradient).detach().requires_grad_()
    assert abs(abs(x.item()) - 2) < 0.2


@pytest.mark.long
def test_alive_a_narrow_generator_runs_away():
    assert max(final("dmd", "detach", "mean_error")) <= 1e-3
    assert min(final("dmd", "none", "mean_error")) >= 1000
    assert final("dmd", "none", "gradient_ratio") == pytest.approx([-3] * 3, abs=1e-6)
