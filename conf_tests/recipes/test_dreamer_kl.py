"""Dreamer's KL balance: the fixed point in closed form, each loss by hand, and data of exact moments."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final
from conf_tests.helpers import trained as steps_of
from recipes.parts.pairs import Signs

RHO = 0.6


def fixed_point(rep):
    return 1 / (1 + rep * (1 - RHO**2))


ARMS = [
    ([], 0.1, 0.93985),
    (["recipe.dyn=0.8", "recipe.rep=0.2"], 0.2, None),
    (["recipe.dyn=0.1", "recipe.rep=0.5"], 0.5, 0.75758),
    (["stop.dyn_posterior=none"], 0.6, 0.72254),
    (["stop.dyn_posterior=none", "stop.rep_prior=none"], 0.6, 0.72254),
    (["stop.rep_prior=none"], 0.1, 0.93985),
    (["stop.dyn_posterior=scale:0.5"], 0.35, None),
    (["recipe.dyn=2"], 0.1, 0.93985),
]


def trained(steps, *overrides):
    recipe = build_recipe("recipe=dreamer_kl", *overrides)
    batch, optimizer = Signs().train_tensors(), recipe.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        losses = [getattr(recipe, f"{name}_loss")(batch) for name in ("dyn", "rep", "reconstruction")]
        (recipe.dyn * losses[0] + recipe.rep * losses[1] + losses[2]).backward()
        optimizer.step()
    return recipe.posterior.weight.item(), recipe.prior.weight.item()


@pytest.mark.parametrize(("overrides", "rep", "published"), ARMS)
def test_fixed_point(overrides, rep, published):
    """8a: of what reaches the posterior alone."""
    a, b = trained(400, *overrides, "recipe.optimizer.lr=0.4")
    assert a == pytest.approx(fixed_point(rep), abs=1e-6)
    assert b == pytest.approx(a * RHO, abs=1e-6)
    assert published is None or a == pytest.approx(published, abs=1e-4)


def test_training_weighs_each_by_its_own():
    """The fixed point of the recipe's own step, with dyn and rep far apart."""
    recipe = steps_of(400, "recipe=dreamer_kl", "recipe.optimizer.lr=0.4", "recipe.dyn=0.8", "recipe.rep=0.2")
    assert recipe.posterior.weight.item() == pytest.approx(fixed_point(0.2), abs=1e-6)


def test_losses_by_hand():
    recipe = build_recipe("recipe=dreamer_kl", "recipe.free_nats=0.1")
    with torch.no_grad():
        recipe.posterior.weight.fill_(0.8)
        recipe.prior.weight.fill_(0.3)
    x, h = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[1.0], [-1.0]]).double()
    by_hand = (0.5**2 / 2 + 1.1**2 / 2) / 2
    assert recipe.dyn_loss((x, h)).item() == pytest.approx(by_hand)
    assert recipe.rep_loss((x, h)).item() == pytest.approx(by_hand)
    assert recipe.reconstruction_loss((x, h)).item() == pytest.approx(0.2**2 / 2)
    recipe.free_nats = 0.2
    assert recipe.dyn_loss((x, h)).item() == pytest.approx((0.2 + 1.1**2 / 2) / 2)


@pytest.mark.parametrize(
    ("boundary", "to", "factor"), [("dyn_posterior", "posterior", 0.1 / 0.6), ("rep_prior", "prior", 0.5 / 0.6)]
)
def test_each_is_taught_its_own_share_and_alive_the_whole(boundary, to, factor):
    """By dyn, .5, the prior, by rep, .1, the posterior; with a cut missing, that one by both: .6."""
    batch, gradient = Signs().train_tensors(), {}
    for choice in ("detach", "none"):
        recipe = build_recipe("recipe=dreamer_kl", f"stop.{boundary}={choice}")
        loss = recipe.dyn * recipe.dyn_loss(batch) + recipe.rep * recipe.rep_loss(batch)
        (gradient[choice],) = torch.autograd.grad(loss, list(getattr(recipe, to).parameters()))
    assert gradient["none"].abs().item() > 1e-3
    torch.testing.assert_close(gradient["detach"], factor * gradient["none"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("equal", [5, 8, 10])
def test_signs_have_exact_moments(equal):
    data = Signs(equal=equal)
    x, h = data.train_tensors()
    assert (x.mean(), h.mean(), x.square().mean(), h.square().mean()) == (0, 0, 1, 1)
    assert (x * h).mean().item() == pytest.approx(data.correlation)
    with pytest.raises(ValueError, match=r"data.equal=11: of ten pairs; choose 0 to 10"):
        Signs(equal=11)


@pytest.mark.long
def test_only_what_reaches_the_posterior_counts():
    for arm, rep in (("v3", 0.1), ("v2", 0.2), ("exchanged", 0.5), ("dyn-live", 0.6), ("rep-live", 0.1)):
        assert final("dreamer_kl", arm, "posterior") == pytest.approx([fixed_point(rep)] * 3, abs=3e-3), arm
