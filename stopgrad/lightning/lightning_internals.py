"""All that we use of Lightning beyond what it makes public: nothing private of it stands in any other file.

Tried with Lightning 2.6. Where a new version breaks one of these, conf_tests/test_private.py says which, and what no
longer works.
"""

from __future__ import annotations

import traceback
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger


def batch_number(trainer: Trainer) -> int:
    """How many batches were trained before this one, over all epochs: ``total_batch_idx`` of the loop inside."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def ask_no_rank_for_sigterm(trainer: Trainer) -> None:
    """Let no batch begin with a question to all ranks: ``_broadcast_sigterm_tensor`` of the loop, from 2.6 on."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def loader_states(checkpoint: dict[str, Any]) -> list[Any]:
    """The states of the training's loaders in a checkpoint: ``loops``, as the fit loop lays it out."""
    return checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])


def set_loader_states(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Let the training's loaders go on from these: ``loops``, as the fit loop reads it."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def raised_in_restore(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint: its functions that do so have ``restore`` in their names."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "restore" in frame.f_code.co_name]
    return any(frame.f_globals["__name__"].startswith("lightning.") for frame in frames)


def has_begun(logger: WandbLogger) -> bool:
    """Whether a run at Weights & Biases was begun; to ask for ``experiment`` would begin one: ``_experiment``."""
    return logger._experiment is not None
