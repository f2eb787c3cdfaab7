"""What a recipe does, seen in this process: where its gradients go, and the weights it ends with."""

from __future__ import annotations

import functools
import sys
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from stopgrad import FlowContract, audit
from stopgrad.flow.contract import Violation
from stopgrad.lightning.audit import boundaries_of, groups_of
from stopgrad.runner.build import build, build_recipe


class Refused(Exception):
    """In one line, why a config cannot run."""


def contract_of(recipe: L.LightningModule) -> FlowContract:
    """The module's own, else its file's."""
    return getattr(recipe, "FLOW", None) or sys.modules[type(recipe).__module__].FLOW


@functools.cache
def batch_of(data: str) -> Any:
    """The first batch of a data section, given as YAML."""
    module = instantiate(OmegaConf.create(data), _convert_="all")
    module.prepare_data()
    module.setup("fit")
    return next(iter(module.train_dataloader()))


def violations(config: DictConfig, trained: bool = False) -> tuple[list[Violation], FlowContract]:
    """How a freshly built recipe breaks its contract on the first batch, each loss taken by its method; the contract.

    Where ``trained``, two steps follow: some refusals come only there, such as of a graph that backward has freed.

    Raises:
        Refused: the recipe, or PyTorch, refuses the config.
    """
    try:
        found = _violations(config)
        if trained:
            weights_after(config, 2)
        return found
    except (RuntimeError, ValueError, InstantiationException) as error:
        raise Refused(" ".join(str(error.__cause__ or error).split())) from error


def _violations(config: DictConfig) -> tuple[list[Violation], FlowContract]:
    torch.manual_seed(config.seed)
    recipe = build_recipe(config)
    recipe.configure_optimizers()  # where some refuse what leaves nothing to learn
    contract = contract_of(recipe)
    collect = getattr(recipe, "collect", lambda batch: batch)  # what the losses take, where they take no batch
    with audit(groups_of(recipe), boundaries=boundaries_of(recipe)) as a:
        batch = collect(batch_of(OmegaConf.to_yaml(config.data, resolve=True)))
        for name in contract:
            a.loss(name, getattr(recipe, name)(batch))
    return contract.violations(a.matrix()), contract


def weights_after(config: DictConfig, steps: int) -> dict[str, Tensor]:
    """The state of a recipe that train.py's own builder has built and Lightning has trained, unwatched."""
    alone = OmegaConf.merge(config, {})
    assert isinstance(alone, DictConfig)
    with open_dict(alone):
        alone.logger, alone.callbacks = None, {}
        alone.trainer.update(max_steps=steps, val_check_interval=steps, limit_val_batches=0, enable_checkpointing=False)
    L.seed_everything(alone.seed, workers=True, verbose=False)
    run = build(alone)
    run.trainer.fit(run.recipe, run.data)
    assert run.trainer.global_step == steps
    return run.recipe.state_dict()


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The tensors that are not equal, bit for bit."""
    return [name for name in {**a, **b} if name not in a or name not in b or not torch.equal(a[name], b[name])]
