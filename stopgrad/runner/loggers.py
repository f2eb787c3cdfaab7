"""What loggers are told of a run beside its curves: its settings, and that it has ended."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from stopgrad.compare.tags import shown
from stopgrad.lightning.lightning_internals import has_begun
from stopgrad.runner.errors import RunFailed


class Board(TensorBoardLogger):
    """TensorBoard whose first screen is what the recipe is judged by; ``epoch``, of which a run has one, is left out.

    Attributes:
        declared: the names of these metrics.
    """

    declared: frozenset[str] = frozenset()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({shown(tag, self.declared): v for tag, v in metrics.items() if tag != "epoch"}, step)


@rank_zero_only
def log_settings(loggers: Iterable[Any], settings: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Tell each logger the run's settings; TensorBoard also of which ``metrics`` HParams shows the last value.

    Raises:
        RunFailed: Weights & Biases lets nobody in.
    """
    metrics = [*metrics]
    settings = {key: value for key, value in settings.items() if not key.endswith("_")}  # Hydra's own, as _partial_
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_in(logger)
        logger.log_hyperparams(settings)
        if isinstance(logger, TensorBoardLogger):
            from torch.utils.tensorboard.summary import hparams

            plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
            if isinstance(logger, Board):
                logger.declared = frozenset(metrics)
            names = [shown(name, getattr(logger, "declared", ())) for name in metrics]
            experiment, session, _ = hparams(plain, dict.fromkeys(names, 0.0))
            for part in (experiment, session):
                logger.experiment.file_writer.add_summary(part)


def _log_in(logger: WandbLogger) -> None:
    os.environ.setdefault("WANDB_QUIET", "true")  # no summary of its own between those of the runs
    wandb: Any = importlib.import_module("wandb")  # it is there, or Lightning had refused to make the logger
    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        raise RunFailed(f"logger=wandb: {' '.join(str(error).split())}") from None


@rank_zero_only
def close(loggers: Iterable[Any]) -> None:
    """End the run at Weights & Biases: else the next run of a sweep would be written into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and has_begun(logger):
            logger.experiment.finish()
