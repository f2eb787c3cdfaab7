"""Attribution: relevance adds up over 40 seeds, no cut changes a value, and the model trains alike in all arms."""

import pytest
import torch

from conf_tests.helpers import build_recipe, final, trained
from recipes.parts.noise import Noise

RECIPE = "recipe=attribution"
NOISE = Noise(dimensions=6).held_out
EVERY = ["stop.attention=none", "stop.norm=none", "stop.gate=none"]


def missing(recipe):
    """What the relevances lack of the logits, relative, at worst over the inputs and on average."""
    relevance, logits = recipe.relevance(recipe.embedding(recipe.tokens(NOISE)[0]))
    apart = (relevance.sum(1) - logits).abs()
    return (apart / logits.abs()).max().item(), (apart.mean() / logits.abs().mean()).item()


@pytest.mark.parametrize("seed", range(40))
def test_relevance_adds_up_to_the_logit(seed):
    assert missing(build_recipe(RECIPE, f"seed={seed}"))[0] <= 1e-5
    assert missing(build_recipe(RECIPE, f"seed={seed}", "stop.norm=none"))[1] >= 0.05


@pytest.mark.parametrize("name", ["attention", "norm", "gate"])
def test_what_is_left_alive_is_missing_of_a_trained_model(name):
    recipe = trained(150, RECIPE, f"stop.{name}=none")
    assert missing(recipe)[1] >= 0.005
    assert missing(trained(150, RECIPE))[1] <= 1e-10


def test_cuts_change_no_value_and_no_training():
    frozen, live = trained(5, RECIPE), trained(5, RECIPE, *EVERY)
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), live.parameters(), strict=True))
    x = frozen.embedding(frozen.tokens(NOISE)[0])
    assert torch.equal(frozen.logits(x, explained=True), frozen.logits(x, explained=False))
    assert torch.equal(frozen.relevance(x)[1], live.relevance(x)[1])


def test_alive_it_is_input_times_gradient_of_the_model_itself():
    recipe = build_recipe(RECIPE, *EVERY)
    x = recipe.embedding(recipe.tokens(NOISE)[0]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(recipe.logits(x, explained=False).sum(), x)
    torch.testing.assert_close(recipe.relevance(x)[0], (x * gradient).sum(-1).detach())


def test_labels_count_tokens():
    recipe = build_recipe(RECIPE)
    tokens, labels = recipe.tokens(NOISE)
    assert set(tokens.unique().tolist()) == {0, 1, 2, 3}
    for row, label in zip(tokens.tolist(), labels.tolist(), strict=True):
        assert label == (row.count(0) > row.count(1))


@pytest.mark.long
def test_without_the_norms_cut_little_is_left():
    assert max(final("attribution", "frozen", "conservation_error")) <= 1e-5
    assert min(final("attribution", "norm", "conservation_error")) >= 0.5
    assert min(final("attribution", "frozen", "accuracy")) >= 0.95
