"""Sinkhorn: the plan's margins, the envelope gradient over ten seeds and against differences, the sharp value."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final

RECIPE = "recipe=sinkhorn"


@pytest.mark.parametrize("seed", range(10))
def test_envelope_gradient(seed):
    """Cut: right for the entropic value, and wrong for the sharp one."""
    entropic, sharp = (build_recipe(RECIPE, f"seed={seed}", f"stop.value={value}") for value in ("entropic", "sharp"))
    assert entropic.gradient_error().item() <= 0.005
    assert sharp.gradient_error().item() >= 0.05


def test_plan_has_even_margins():
    recipe = build_recipe(RECIPE)
    plan = recipe.log_plan(recipe.cost()).exp()
    assert plan.sum().item() == pytest.approx(1)
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((12,), 1 / 12, dtype=torch.float64), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", ["entropic", "sharp"])
def test_unrolled_gradient_is_a_difference_quotient(value):
    recipe = build_recipe(RECIPE, f"stop.value={value}", "stop.plan=none", "recipe.points=4", "recipe.iterations=50")
    (found,) = torch.autograd.grad(recipe.transport_loss(None), [recipe.moving.places])
    with torch.no_grad():
        losses = []
        for step in (1e-6, -2e-6):
            recipe.moving.places[1, 0] += step
            losses.append(recipe.transport_loss(None).item())
    assert found[1, 0].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("strategy", ["detach", "no_grad", "data"])
def test_cut_the_gradient_is_the_plan_times_that_of_the_cost(strategy):
    recipe = build_recipe(RECIPE, f"stop.plan={strategy}", "recipe.iterations=50")
    (found,) = torch.autograd.grad(recipe.transport_loss(None), [recipe.moving.places])
    plan, places = recipe.log_plan(recipe.cost()).exp().detach(), recipe.moving.places.detach()
    by_hand = (plan[..., None] * (places[:, None] - recipe.targets)).sum(1)
    torch.testing.assert_close(found, by_hand)


@pytest.mark.long
def test_the_cut_saves_the_iterations_and_costs_nothing():
    detach, none = (final("sinkhorn", arm, "transport_cost") for arm in ("detach", "none"))
    assert detach == pytest.approx(none, abs=0.01)
    assert min(final("sinkhorn", "sharp", "gradient_error")) >= 0.05
