"""Two ranks with half the batch each train as one process does with the whole batch."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from conf_tests.distributed.pair import SharedNoise, on_two_ranks, trainer
from conf_tests.helpers import PROCESSES, ROOT, config
from stopgrad.runner.build import build_recipe, quiet, share
from stopgrad.runner.declared import recipe_configs

STEPS = 50
EXEMPT = {  # why not; the same reasons stand in docs/distributed.md
    "actor_critic": "each rank has environments of its own",
    "loss_logging": "BatchNorm normalises by the rank's own half of the batch",
    "bandit": "each rank has environments of its own",
    "td3": "each rank has environments and a replay of its own",
}
PLAIN = {"td": ["data.batch_size=2"]}  # one transition cannot be shared
RUN = ["trainer.max_steps=50", f"cache={ROOT / '.cache'}"]
RECIPES = [name for name in recipe_configs() if name not in EXEMPT]


def weights_after(overrides: list[str], ranks: int) -> dict[str, np.ndarray]:
    """All weights after 50 steps in float64, on this rank."""
    quiet()
    composed = share(config(*overrides, *RUN), ranks)
    torch.manual_seed(composed.seed)
    data, recipe = instantiate(composed.data, _convert_="all"), build_recipe(composed)
    options = {"precision": "64-true", "max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0}
    options |= {"callbacks": [SharedNoise()], "num_sanity_val_steps": 0}
    if ranks == 1:
        options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **options).fit(recipe, data)
    else:
        trainer(**options).fit(recipe, data)
    assert recipe.global_step == STEPS
    return {name: weight.numpy() for name, weight in recipe.state_dict().items()}


def _alone(overrides, answers):
    torch.set_num_threads(1)
    answers.put(weights_after(overrides, 1))


def alone(overrides):
    answers = PROCESSES.Queue()
    process = PROCESSES.Process(target=_alone, args=(overrides, answers), daemon=True)
    process.start()
    try:
        return answers.get(timeout=120)
    finally:
        process.kill()


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_halves_train_as_the_whole(recipe):
    overrides = [f"recipe={recipe}", *PLAIN.get(recipe, [])]
    whole = alone(overrides)
    for half in on_two_ranks(weights_after, overrides, 2):
        for name, expected in whole.items():
            assert np.abs(half[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name
    assert any(weight.dtype == np.float64 and weight.any() for weight in whole.values())
