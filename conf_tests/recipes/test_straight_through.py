"""Straight-through estimators: their expected gradients by listing every sample, over forty functions; their rests."""

import functools

import pytest
import torch
from hydra.utils import instantiate

from conf_tests.helpers import config, final
from recipes.straight_through import StraightThrough

SEEDS = range(40)


@functools.cache
def composed(*overrides):
    return config(*overrides)


def drawn(seed, *overrides, recipe="straight_through") -> StraightThrough:
    of = composed(f"recipe={recipe}", *overrides)
    torch.manual_seed(seed)
    return instantiate(of.recipe, stop=of.stop, _convert_="all")


def error(seed, *overrides):
    found, exact = drawn(seed, *overrides).gradients()
    return float((found - exact).norm() / exact.norm())


class TestExpected:
    def test_reinmax_is_exact_for_quadratics(self):
        """17a, and the score function for anything."""
        for seed in SEEDS:
            assert error(seed) < 1e-9
            for function in ("quadratic", "sine"):
                assert error(seed, "stop.estimator=score", f"recipe.function={function}") < 1e-9

    def test_straight_through_is_not_and_nothing_is_for_a_sine(self):
        assert all(error(seed, "stop.estimator=st") > 0.02 for seed in SEEDS)
        assert all(error(seed, "recipe.function=sine") >= 0.01 for seed in SEEDS)

    def test_without_its_inner_cut_reinmax_is_half_of_straight_through(self):
        for seed in SEEDS:
            half, whole = (drawn(seed, each).gradients()[0] for each in ("stop.inner=none", "stop.estimator=st"))
            torch.testing.assert_close(half, whole / 2, rtol=1e-9, atol=1e-12)

    def test_straight_through_is_exact_for_linear_functions(self):
        recipe = drawn(0, "stop.estimator=st")
        recipe.f = lambda y: y @ recipe.target
        found, exact = recipe.gradients()
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("estimator", ["reinmax", "st", "gumbel"])
    def test_with_its_residual_live_none_has_a_gradient(self, estimator):
        found, _ = drawn(0, f"stop.estimator={estimator}", "stop.residual=none").gradients()
        assert found.abs().max() < 1e-12

    @pytest.mark.parametrize("estimator", ["reinmax", "st"])
    def test_value_is_the_choices(self, estimator):
        recipe = drawn(0, f"stop.estimator={estimator}")
        every = torch.eye(4, dtype=torch.float64)
        expected = (recipe.start.softmax(0) * recipe.f(every)).sum()
        torch.testing.assert_close(recipe.relaxed(recipe.start), expected)

    def test_gumbel_draws_the_categories_by_their_probabilities(self):
        recipe = drawn(0, "stop.estimator=gumbel", "recipe.draws=40000")
        recipe.f = lambda y: y[:, 1]
        torch.manual_seed(0)
        assert float(recipe.relaxed(recipe.start)) == pytest.approx(float(recipe.start.softmax(0)[1]), abs=0.01)


class TestToy:
    """17b."""

    @pytest.mark.parametrize(
        ("overrides", "rest"),
        [([], 0), (["stop.estimator=score"], 0), (["stop.estimator=exact"], 0), (["stop.estimator=st"], 0.45)],
    )
    def test_where_it_rests(self, overrides, rest):
        recipe = drawn(0, *overrides, recipe="straight_through_toy")
        optimizer = recipe.configure_optimizers()
        for _ in range(300):
            optimizer.zero_grad()
            recipe.relaxed_loss(torch.zeros(1)).backward()
            optimizer.step()
        p = recipe.logits().softmax(0)[1].item()
        assert p == pytest.approx(0.45, abs=1e-3) if rest else p <= 0.02

    def test_its_function_by_hand(self):
        recipe = drawn(0, recipe="straight_through_toy")
        torch.testing.assert_close(recipe.f(torch.eye(2).double()).tolist(), [0.45**2, 0.55**2])
        with pytest.raises(ValueError, match=r"recipe.categories=3: the toy has 2"):
            StraightThrough(stop={}, optimizer=torch.optim.SGD, categories=3, function="toy")


@pytest.mark.long
def test_straight_through_rests_where_nothing_is_best():
    assert final("straight_through_toy", "st", "health/last") == pytest.approx([0.45] * 3, abs=1e-3)
    assert max(final("straight_through_toy", "reinmax", "health/last")) <= 0.02
    assert max(final("straight_through", "reinmax", "error")) < 1e-9
    assert min(final("straight_through", "st", "error")) >= 0.04
