"""Kumar's linear network: error out of distribution of the probe, of full fine-tuning, and of one after the other."""

from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from conf_tests.helpers import build_recipe, config, norms
from recipes.finetune_linear import BOUNDARIES
from recipes.parts.linear_task import LinearTask

RECIPE = "recipe=finetune_linear"


def ready(*overrides):
    """A recipe and its data, as a Trainer would have them at the start of a fit, and an optimiser."""
    composed = config(RECIPE, *overrides)
    torch.manual_seed(composed.seed)
    recipe, data = build_recipe(RECIPE, *overrides), instantiate(composed.data, _convert_="all")
    recipe.trainer = SimpleNamespace(datamodule=data, global_step=0, log_every_n_steps=10**9)
    recipe.setup("fit")
    optimizer = recipe.configure_optimizers()
    recipe.optimizers = lambda: optimizer
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.log = lambda *args, **kwargs: None
    return recipe, data


def trained(steps, *overrides):
    """After so many of the very training_step; the batch is all of the training inputs."""
    recipe, data = ready(*overrides)
    for recipe.trainer.global_step in range(1, steps + 1):
        recipe.training_step((data.train_inputs, data.train_labels), 0)
    return recipe


def scores(recipe):
    """What a validation logs."""
    found = {}
    recipe.log = lambda name, value, **kwargs: found.update({name: value.item()})
    with torch.no_grad():
        recipe.validation_step(next(iter(recipe.trainer.datamodule.val_dataloader())), 0)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_fine_tuning_distorts_perfect_features(seed):
    arms = {"probe": (1000, []), "full": (500, ["stop.features=none"]), "both": (1500, ["stop.unfreeze=at_once"])}
    found = {name: scores(trained(steps, f"seed={seed}", *arm)) for name, (steps, arm) in arms.items()}
    assert all(score["error"] < 1e-3 for score in found.values())  # in distribution nobody is wrong
    assert found["probe"]["ood_error"] <= 0.01
    assert found["both"]["ood_error"] <= 0.01
    assert found["full"]["ood_error"] >= 0.3
    assert found["probe"]["health/weights_moved"] == 0.0
    assert found["both"]["health/weights_moved"] > 0.0


@pytest.mark.parametrize("strategy", [s for s in BOUNDARIES["features"] if s not in ("none", "scale")])
def test_every_cut_is_the_same_probe(strategy):
    probe, other = trained(20), trained(20, f"stop.features={strategy}")
    assert torch.equal(probe.head.weight, other.head.weight)
    assert torch.equal(other.backbone.weight, other.pretrained)


def test_gradients_of_zero_let_weight_decay_move_the_backbone():
    decayed = ["stop.features=scale:0", "recipe.optimizer.weight_decay=0.01"]
    assert not torch.equal((moved := trained(3, *decayed)).backbone.weight, moved.pretrained)
    still = trained(3, "stop.features=detach", "recipe.optimizer.weight_decay=0.01")  # its gradients are None
    assert torch.equal(still.backbone.weight, still.pretrained)


@pytest.mark.parametrize("strategy", ["detach", "freeze_params"])
def test_the_backbone_moves_from_its_step_on(strategy):
    recipe, data = ready("stop.unfreeze=at_once", "recipe.unfreeze_after=3", f"stop.features={strategy}")
    moved = []
    for recipe.trainer.global_step in range(5):
        recipe.training_step((data.train_inputs, data.train_labels), 0)
        moved.append(not torch.equal(recipe.backbone.weight, recipe.pretrained))
    assert moved == [False, False, False, True, True]


def test_the_loss_is_the_squared_error_and_reaches_the_head_alone():
    recipe, data = ready()
    torch.nn.init.zeros_(recipe.head.weight)
    loss = recipe.target_loss((data.train_inputs, data.train_labels))
    assert loss.item() == pytest.approx(data.train_labels.square().mean().item())
    assert norms(loss, recipe.parameter_groups())["backbone"] is None


def test_unfreezing_what_is_not_frozen_is_refused():
    with pytest.raises(Exception, match=r"stop.unfreeze=at_once: with stop.features=none nothing is frozen"):
        build_recipe(RECIPE, "stop.features=none", "stop.unfreeze=at_once")


def test_data_are_what_they_are_said_to_be():
    data = LinearTask(seed=3)
    torch.testing.assert_close(data.backbone @ data.backbone.T, torch.eye(20))
    assert data.head.norm().item() == pytest.approx(1)
    assert torch.linalg.matrix_rank(torch.cat([data.train_inputs, data.inputs]), rtol=1e-4) == 30
    assert torch.linalg.matrix_rank(data.ood_inputs, rtol=1e-4) == 100
    with pytest.raises(ValueError, match=r"data.subspace=100: choose from 20 to 99"):
        LinearTask(subspace=100)
