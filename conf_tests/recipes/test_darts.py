"""DARTS: the architecture's gradient by hand, and the fixed point of each inner step."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final, norms, trained

RECIPE = "recipe=darts"
ARMS = {
    "none": ([], 1.0),
    "detach": (["stop.inner=detach"], 2.0),
    "data": (["stop.inner=data"], 2.0),
    "xi=0": (["recipe.xi=0"], 2.0),
    "xi=.1": (["recipe.xi=0.1"], 2 / 1.2),
    "scale": (["stop.inner=scale:0.5"], 2 / 1.5),
    "leaky": (["stop.weights=none", "stop.alpha=none"], 1.0),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", range(3))
def test_fixed_points(arm, seed):
    """2 / (1 + 2 a xi), a the share of the inner step's gradient that is let through."""
    overrides, end = ARMS[arm]
    recipe = trained(400, RECIPE, f"seed={seed}", *overrides)
    assert recipe.alpha().item() == pytest.approx(end, abs=1e-6)
    assert recipe.w().item() == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(("arm", "share"), [("none", 1), ("detach", 0), ("xi=.1", 1), ("scale", 0.5)])
@pytest.mark.parametrize("seed", range(40))
def test_gradient_by_hand(arm, share, seed):
    """w' + 2 a xi alpha - 2."""
    recipe = build_recipe(RECIPE, f"seed={seed}", *ARMS[arm][0])
    alpha, w = recipe.alpha().item(), recipe.w().item()
    stepped = w - recipe.xi * 2 * (w - alpha)
    (found,) = torch.autograd.grad(recipe.val_loss(None), [recipe.alpha.value])
    assert found.item() == pytest.approx(stepped + 2 * share * recipe.xi * alpha - 2, rel=1e-12)


def test_each_loss_teaches_its_own_parameters():
    recipe = build_recipe(RECIPE, "recipe.xi=0.1")
    groups = recipe.parameter_groups()
    assert norms(recipe.val_loss(None), groups)["weights"] is None
    assert norms(recipe.train_loss(None), groups)["alpha"] is None
    leaky = build_recipe(RECIPE, "recipe.xi=0.1", "stop.weights=none", "stop.alpha=none")
    groups = leaky.parameter_groups()
    assert norms(leaky.val_loss(None), groups)["weights"] not in (None, 0)
    assert norms(leaky.train_loss(None), groups)["alpha"] not in (None, 0)


def test_it_begins_near_the_papers_start_and_differs_by_seed():
    starts = [build_recipe(RECIPE, f"seed={seed}") for seed in (0, 1)]
    assert [recipe.alpha().item() for recipe in starts] == pytest.approx([2, 2], abs=0.4)
    assert [recipe.w().item() for recipe in starts] == pytest.approx([-2, -2], abs=0.4)
    assert starts[0].alpha().item() != starts[1].alpha().item()


@pytest.mark.long
def test_first_order_ends_elsewhere():
    assert max(final("darts", "second-order", "optimum_error")) <= 1e-3
    assert final("darts", "first-order", "alpha") == pytest.approx([2] * 3, abs=1e-3)
