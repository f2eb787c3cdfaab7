"""Refinement: the weights that each cut and each loss leads to, against the best found on a grid."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final, trained

RECIPE = "recipe=refine"
LIVE, LAST, UNTIED = "stop.estimate=none", "recipe.losses=last", "recipe.tied=false"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("overrides", "weight", "last"),
    [
        ([], 0.35151, 0.23784),
        ([LIVE], 0.36609, 0.24429),
        ([LAST], 0.23488, 0.23488),
        ([LAST, LIVE], 0.28546, 0.22313),
    ],
)
def test_one_weight_for_all(seed, overrides, weight, last):
    recipe = trained(400, RECIPE, f"seed={seed}", *overrides)
    assert recipe.step.weights.item() == pytest.approx(weight, abs=1e-4)
    assert recipe.estimates()[-1].item() == pytest.approx(last, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut", ["detach", "none", "scale:0.5"])
def test_a_weight_for_each_is_the_best_filter_cut_or_not(seed, cut):
    recipe = trained(400, RECIPE, f"seed={seed}", UNTIED, f"stop.estimate={cut}")
    expected = torch.tensor([1 / 2, 1 / 3, 1 / 4, 1 / 5], dtype=torch.float64)
    torch.testing.assert_close(recipe.step.weights.detach(), expected, rtol=0, atol=1e-6)
    assert recipe.estimates()[-1].item() == pytest.approx(1 / 5, abs=1e-9)


@pytest.mark.parametrize("losses", ["all", "last"])
def test_alive_no_weight_has_a_lower_loss(losses):
    """Against a grid of a thousand: what the cut ends at is not the least."""
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    variance, total = torch.ones_like(grid), torch.zeros_like(grid)
    for _ in range(4):
        variance = (1 - grid) ** 2 * variance + grid**2
        total += variance
    least = (total if losses == "all" else variance).min().item()
    ends = {
        cut: trained(400, RECIPE, f"recipe.losses={losses}", f"stop.estimate={cut}").refine_loss(None).item()
        for cut in ("none", "detach")
    }
    assert least - 1e-4 <= ends["none"] <= least
    assert ends["detach"] > least + 1e-3


def test_the_cut_leaves_each_steps_own_slope():
    """2 (w - (1 - w) V) of each estimate V, which is taken for a constant."""
    recipe = build_recipe(RECIPE)
    w = recipe.step.weights.item()
    variance, slope = 1.0, 0.0
    for _ in range(4):
        slope += 2 * (w - (1 - w) * variance)
        variance = (1 - w) ** 2 * variance + w**2
    (found,) = torch.autograd.grad(recipe.refine_loss(None), [recipe.step.weights])
    assert found.item() == pytest.approx(slope, rel=1e-12)


@pytest.mark.long
def test_the_cut_is_free_where_no_weight_is_shared():
    assert final("refine", "untied", "error_variance") == pytest.approx([0.2] * 3, abs=1e-6)
    assert final("refine", "untied-none", "error_variance") == pytest.approx([0.2] * 3, abs=1e-6)
    assert min(final("refine", "last", "error_variance")) - max(final("refine", "last-none", "error_variance")) > 0.01
