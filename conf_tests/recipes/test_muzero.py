"""MuZero: the gradient of an unroll in closed form, live, halved and cut; one fixed point, and steps that it stands."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final

CLOSED = {  # of the mean state at theta = 1
    "none": lambda k: (k + 1) / 2,
    "scale:0.5": lambda k: 2 - 2 * (1 - 0.5**k) / k,
    "detach": lambda k: 1,
}


def unrolled(k, state):
    return build_recipe("recipe=muzero", f"recipe.num_unroll_steps={k}", f"stop.state={state}")


def trained(steps, k, state):
    recipe = unrolled(k, state)
    optimizer = recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        recipe.unroll_loss(torch.zeros(1)).backward()
        optimizer.step()
    return abs(recipe.model.weight.item() - 0.9)


@pytest.mark.parametrize("state", CLOSED)
@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_gradient_in_closed_form(k, state):
    recipe = unrolled(k, state)
    with torch.no_grad():
        recipe.model.weight.fill_(0.3)
    assert recipe.gradient().item() == pytest.approx(CLOSED[state](k), abs=1e-6)
    assert recipe.model.weight.item() == 0.3  # where it was


def test_halved_it_is_bounded_and_any_factor_has_its_own_bound():
    assert unrolled(200, "scale:0.5").gradient().item() < 2
    for a in (0.2, 0.9):
        closed = sum((1 - a**k) / (1 - a) for k in range(1, 31)) / 30
        assert unrolled(30, f"scale:{a}").gradient().item() == pytest.approx(closed, rel=1e-9)


def test_loss_by_hand():
    recipe = unrolled(3, "none")
    with torch.no_grad():
        recipe.model.weight.fill_(0.5)
    by_hand = ((0.5 - 0.9) ** 2 + (0.25 - 0.81) ** 2 + (0.125 - 0.729) ** 2) / 6
    assert recipe.unroll_loss(torch.zeros(1)).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("state", CLOSED)
def test_a_short_unroll_comes_to_the_same_point(state):
    assert trained(200, 5, state) < 1e-9


def test_a_long_one_does_not_stand_the_same_steps_when_live():
    assert trained(200, 20, "scale:0.5") < 1e-9
    assert trained(200, 20, "none") > 0.005


@pytest.mark.long
def test_length_counts_only_when_live():
    assert final("muzero", "live-20", "gradient") == pytest.approx([10.5] * 3)
    assert final("muzero", "half-20", "gradient") == pytest.approx([1.9] * 3, abs=1e-6)
    assert max(final("muzero", "half-20", "error")) < 1e-4
    assert min(final("muzero", "live-20", "error")) > 0.1
