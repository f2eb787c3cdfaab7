"""Random streams and the loader's position in the checkpoint, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from stopgrad.audits.ranks import gathered
from stopgrad.lightning.lightning_internals import loader_states, set_loader_states


class RandomStreams(Callback):
    """Keeps in the checkpoint what each rank has for itself, so that a resumed run draws what it would have drawn.

    That is the random states of Python, NumPy and torch, and the state of the data's loader (a position, or
    environments in mid-episode). Random states are restored at the first batch after the resume, once set-up has drawn
    what it draws. All is stored as tensors and plain values, so that the checkpoint loads with ``weights_only=True``.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"] = gathered({"random": random_states(), "loaders": loader_states(checkpoint)})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        mine = checkpoint["ranks"][trainer.global_rank % len(checkpoint["ranks"])]
        self.restored = mine["random"]
        set_loader_states(checkpoint, mine["loaders"])

    def on_train_batch_start(self, *args: Any) -> None:
        if self.restored is not None:
            state, self.restored = self.restored, None
            restore_random_states(state)


def random_states() -> dict[str, Any]:
    """Of Python, NumPy and torch in this process, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_states`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
