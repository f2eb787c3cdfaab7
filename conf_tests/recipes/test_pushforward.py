"""The pushforward trick: the roots of three cubics, and each gradient against samples of a process."""

import numpy as np
import pytest
import torch

from conf_tests.helpers import build_recipe, final, trained

RECIPE = "recipe=pushforward"
ARMS = {
    "detach": [],
    "none": ["stop.rollout=none"],
    "scale": ["stop.rollout=scale:0.5"],
    "one": ["recipe.rollout_weight=0"],
}


def root(cubic, linear, rho_1):
    """The real root of cubic a^3 + linear a - rho_1."""
    roots = np.roots([cubic, 0, linear, -rho_1]).tolist() if cubic else [rho_1 / linear]
    (real,) = [each.real for each in roots if abs(each.imag) < 1e-9]
    return real


def cubic_of(arm, rho_1, rho_2):
    share = {"detach": 0, "none": 1, "scale": 0.5}.get(arm)
    return root(0, 1, rho_1) if share is None else root(1 + share, 1 - (1 + share) * rho_2, rho_1)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rho_1", "rho_2"), [(0.5, 0.6), (0.8, 0.5), (0.3, 0.0)])
def test_fixed_points(arm, seed, rho_1, rho_2):
    given = [f"recipe.rho_1={rho_1}", f"recipe.rho_2={rho_2}"]
    a = trained(200, RECIPE, f"seed={seed}", *given, *ARMS[arm]).solver.a.item()
    assert a == pytest.approx(cubic_of(arm, rho_1, rho_2), abs=1e-6)


def test_the_three_figures_of_the_page():
    assert [cubic_of(arm, 0.5, 0.6) for arm in ("one", "detach", "none")] == pytest.approx(
        [0.5, 0.6287, 0.6828], abs=5e-5
    )


@pytest.mark.parametrize("arm", ["detach", "none"])
def test_gradient_is_that_of_samples(arm):
    """Of a million triples with these correlations."""
    recipe = build_recipe(RECIPE, *ARMS[arm])
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[1, 0.5, 0.6], [0.5, 1, 0.5], [0.6, 0.5, 1]], dtype=torch.float64)
    noise = torch.randn(1_000_000, 3, generator=generator, dtype=torch.float64)
    x = noise @ torch.linalg.cholesky(covariance).T
    first = recipe.solver(x[:, 0])
    second = recipe.solver(first.detach() if arm == "detach" else first)
    loss = ((first - x[:, 1]).square().mean() + (second - x[:, 2]).square().mean()) / 2
    found, wanted = (
        torch.autograd.grad(each, [recipe.solver.a])[0].item() for each in (recipe.rollout_loss(None), loss)
    )
    assert found == pytest.approx(wanted, abs=0.01)


def test_correlations_of_no_process_are_refused():
    with pytest.raises(Exception, match=r"recipe.rho_2=0.1: no process has it; choose from 0.62 to 1"):
        build_recipe(RECIPE, "recipe.rho_1=0.9", "recipe.rho_2=0.1")


@pytest.mark.long
def test_alive_is_better_in_two_steps_and_worse_in_one():
    cut, live = (
        {m: final("pushforward", arm, m)[0] for m in ("one_step_error", "two_step_error")} for arm in ("detach", "none")
    )
    assert live["two_step_error"] < cut["two_step_error"]
    assert live["one_step_error"] > cut["one_step_error"]
