"""The Dirac-GAN: every number of its page, exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

from conf_tests.helpers import build_recipe, norms

STEP, STEPS = 0.1, 500
DATA = torch.zeros(2, 1)


def players(*overrides, steps=STEPS):
    """(theta, psi) after so many of the very training_step, without Lightning around it."""
    recipe = build_recipe("recipe=dirac_gan", *overrides)
    g_optimizer, d_optimizer = recipe.configure_optimizers()
    d_optimizer.optimizer = d_optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: [g_optimizer, d_optimizer]
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=1)
    for k in range(steps):
        recipe.training_step(DATA, k)
    return recipe.generator.theta.item(), recipe.discriminator.weight.item()


def test_simultaneous_updates_stretch_every_step():
    assert math.hypot(*players("recipe.updates=simultaneous")) == pytest.approx(
        math.sqrt(2) * (1 + STEP**2) ** (STEPS / 2), rel=1e-4
    )


def test_alternating_updates_stay_on_the_orbit():
    theta, psi = players()
    assert theta**2 + psi**2 - STEP * theta * psi == pytest.approx(2 - STEP, rel=1e-4)  # what an alternating step keeps
    assert math.hypot(theta, psi) == pytest.approx(1.4103, abs=1e-3)


@pytest.mark.parametrize("updates", ["alternating", "simultaneous"])
def test_r1_comes_home(updates):
    assert math.hypot(*players("recipe.r1=1", f"recipe.updates={updates}")) < 1e-9


def test_a_cut_penalty_is_no_penalty():
    assert players("recipe.r1=1", "stop.penalty=detached", steps=50) == players(steps=50)


@pytest.mark.parametrize("strategy", ["detach", "no_grad", "freeze", "detach_", "data", "none"])
def test_every_cut_and_a_leak_zeroed_in_time_are_one_training(strategy):
    assert players(f"stop.fakes={strategy}", steps=50) == players(steps=50)


def test_a_leak_that_is_left_cancels_the_generator_s_gradient():
    theta, psi = players("stop.fakes=none", "stop.zero_grad=late")
    expected = (1 - STEP**2) ** STEPS
    assert theta == pytest.approx(expected, rel=1e-3)
    assert psi == pytest.approx(1 - (1 - expected) / STEP, rel=1e-4)


@pytest.mark.parametrize(("strategy", "factor"), [("none", 1.0), ("scale:0.5", 0.5), ("reverse:2", -2.0)])
def test_a_gate_scales_what_reaches_theta(strategy, factor):
    recipe = build_recipe("recipe=dirac_gan", f"stop.fakes={strategy}")
    torch.nn.init.constant_(recipe.discriminator.weight, 3.0)
    (gradient,) = torch.autograd.grad(recipe.d_loss(DATA), [recipe.generator.theta])
    assert gradient.item() == factor * 3.0  # psi


@pytest.mark.parametrize(("strategy", "reached"), [("freeze", None), ("none", 1.0)])
def test_discriminator_boundary(strategy, reached):
    recipe = build_recipe("recipe=dirac_gan", f"stop.discriminator={strategy}")
    found = norms(recipe.g_loss(DATA), recipe.parameter_groups())
    assert found == {"generator": 1.0, "discriminator": reached}  # |psi|, |theta|


def test_r1_at_a_known_slope():
    recipe = build_recipe("recipe=dirac_gan", "recipe.r1=4")
    torch.nn.init.constant_(recipe.discriminator.weight, 3.0)
    assert recipe.d_loss(DATA).item() == 3.0 + 4 / 2 * 9  # psi theta + gamma / 2 psi^2


def test_simultaneous_updates_need_the_discriminator_frozen():
    with pytest.raises(Exception, match=r"stop.discriminator=none: with recipe.updates=simultaneous D would step"):
        build_recipe("recipe=dirac_gan", "recipe.updates=simultaneous", "stop.discriminator=none")
