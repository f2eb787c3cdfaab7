"""Random streams and the loader's position in the checkpoint, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
import warnings
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

    On another number of ranks than wrote it a run goes on in the same order of its data, with noise of its own, drawn
    by (seed, rank, step); what each rank has alone, such as environments, begins anew.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None
        self.fresh = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"] = gathered({"random": random_states(), "loaders": loader_states(checkpoint)})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint["ranks"]
        if len(ranks) == trainer.world_size or trainer.state.fn != "fit":
            mine = ranks[trainer.global_rank % len(ranks)]
            self.restored = mine["random"]
            set_loader_states(checkpoint, mine["loaders"])
            return
        self.fresh = True
        states = [rank["loaders"] for rank in ranks]
        shared = all(all(isinstance(each, dict) and each.keys() == {"position"} for each in state) for state in states)
        set_loader_states(checkpoint, states[0] if shared else [])
        if trainer.is_global_zero:
            data = "the data in their order" if shared else "data and environments from their beginning"
            text = (
                f"ckpt_path: written by {len(ranks)} rank(s), goes on on {trainer.world_size}: {data}, noise of its own"
            )
            warnings.warn(text, stacklevel=2)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.restored is not None:
            state, self.restored = self.restored, None
            restore_random_states(state)
        elif self.fresh:
            self.fresh = False
            words = [torch.initial_seed() % 2**32, trainer.global_rank, trainer.global_step]
            (seed,) = np.random.SeedSequence(words).generate_state(1)
            L.seed_everything(int(seed), workers=True, verbose=False)


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
