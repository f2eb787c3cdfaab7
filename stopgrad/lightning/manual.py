"""What a recipe asks of Lightning, typed: its optimisers, its trainer's settings, its data.

A step is one batch on every axis, but Lightning counts the steps of its optimisers. So a recipe steps the one that
steps once a batch through Lightning (:func:`counted`), and every other by itself (:func:`raw`).
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.optim import Optimizer


def optimizers(module: LightningModule) -> list[Any]:
    """Lightning's, in the order of ``configure_optimizers``."""
    found = module.optimizers()
    return list(found) if isinstance(found, list | tuple) else [found]


def counted(module: LightningModule, index: int = 0) -> Optimizer:
    """The optimiser whose steps are counted: ``global_step`` is the batches if it steps once a batch."""
    return cast(Optimizer, optimizers(module)[index])


def raw(module: LightningModule, index: int = 0) -> Optimizer:
    """The optimiser beneath Lightning's, whose steps nobody counts."""
    return optimizers(module)[index].optimizer


def trainer_of(module: LightningModule) -> Trainer:
    return cast(Trainer, module.trainer)


def data_of(module: LightningModule) -> Any:
    """The data module of the run, whose own attributes only the recipe knows."""
    return cast(LightningDataModule, cast(Any, module.trainer).datamodule)


def log_is_due(module: LightningModule, steps_ahead: int = 0) -> bool:
    """Whether this batch is one in ``log_every_n_steps``; ``steps_ahead=1`` asks before the counted step was made."""
    every: int = cast(Any, module.trainer).log_every_n_steps
    return (module.global_step + steps_ahead) % every == 0
