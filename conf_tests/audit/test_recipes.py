"""Every recipe keeps its contract, and every boundary that is switched the wrong way breaks it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from stopgrad import FlowContract, FlowMatrix, audit
from stopgrad.lightning.audit import boundaries_of, groups_of
from stopgrad.runner.names import register

ROOT = Path(__file__).parents[2]
CUTS = {"detach", "detach_", "data", "no_grad", "inference_mode", "freeze", "freeze_params", "cached"}
FACTOR = {"scale": "scale:0.5", "reverse": "reverse:1"}
REFUSED = {"inference_mode": "Inference tensors", "detach_": "Can't detach views"}
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "recipe").glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


def _config(recipe: str, *overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [f"recipe={recipe}", *overrides])


def _module(recipe: str, *overrides: str) -> L.LightningModule:
    config = _config(recipe, *overrides)
    torch.manual_seed(0)
    return instantiate(config.recipe, stop=config.stop, _convert_="all")


@cache
def _batch(recipe: str) -> Any:
    data = instantiate(_config(recipe).data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def _declared(module: L.LightningModule) -> tuple[FlowContract, dict[str, Sequence[str]]]:
    home = sys.modules[type(module).__module__]
    return getattr(module, "FLOW", None) or home.FLOW, home.BOUNDARIES


def _matrix(recipe: str, *overrides: str) -> tuple[FlowContract, FlowMatrix]:
    module = _module(recipe, *overrides)
    contract, _ = _declared(module)
    collect = getattr(module, "collect", lambda batch: batch)  # what a recipe's losses take, where they take no batch
    with audit(groups_of(module), boundaries=boundaries_of(module)) as a:
        batch = collect(_batch(recipe))
        for name in contract:
            a.loss(name, getattr(module, name)(batch))
    return contract, a.matrix()


def _mutations() -> list[tuple[str, str, str, bool]]:
    """(recipe, boundary, strategy, is it legal in the sense of the default contract?)"""
    found = []
    for recipe in RECIPES:
        contract, boundaries = _declared(_module(recipe))
        named = {part for row in contract.values() for part in row}
        for name, strategies in boundaries.items():
            if f"stop.{name}" not in named:
                continue  # this configuration has no such crossing
            paper = strategies[0] in CUTS
            found += [(recipe, name, FACTOR.get(s, s), (s in CUTS) == paper) for s in strategies]
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_default_keeps_the_contract(recipe: str) -> None:
    contract, matrix = _matrix(recipe)
    assert contract.violations(matrix) == []


@pytest.mark.parametrize(("recipe", "boundary", "strategy", "legal"), _mutations())
def test_each_mutation_is_caught_and_no_equivalent_is(recipe: str, boundary: str, strategy: str, legal: bool) -> None:
    try:
        contract, matrix = _matrix(recipe, f"stop.{boundary}={strategy}")
    except RuntimeError as error:
        if REFUSED.get(strategy, "?") in str(error):
            return  # PyTorch itself refuses this arm: nothing is left to audit
        raise
    except ValueError as error:
        if not legal and "has no graph" in str(error):
            return  # it cuts the only path that the default leaves
        raise
    kinds = {v.kind for v in contract.violations(matrix)}
    assert (kinds == set()) == legal, matrix.text()
