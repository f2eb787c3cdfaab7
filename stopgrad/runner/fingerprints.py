"""Fingerprints of a run's weights, random streams and first gradients, by which a comparison finds where arms part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stopgrad.audits.ranks import whole_of
from stopgrad.compare.fingerprint import FILE, FINE, Fingerprints, group_of, random_hash, sketch, tensor_hash
from stopgrad.cuts.torch_internals import tree_leaves, without_overrides

FEWEST, MOST = 50, 100  # at least so many steps between two, at most so many a run, beside the first ones


class KeepFingerprints(Callback):
    """Take a fingerprint as each of these batches begins, and at the end; write them beside ``result.json``.

    Args:
        folder: of the run.
        every_n_steps: None for about a hundred a run, at least 50 steps apart; and always after 0, 1, 2, 4, 8, 16, 32.
        window: (first, last): instead, one after every step from first to last, and then the training stops: how a
            comparison replays a run to find the very step at which it parted.
    """

    def __init__(self, folder: str, every_n_steps: int | None = None, window: Sequence[int] | None = None) -> None:
        self.folder, self.every_n_steps, self.window = Path(folder), every_n_steps, window
        self.taken: Fingerprints | None = None
        self.groups: dict[int, str] = {}  # id of a parameter -> its group
        self.handle: Any = None
        self.seen: set[int] = set()  # ids of optimisers that have stepped

    def wanted(self, step: int, trainer: L.Trainer) -> bool:
        if self.window is not None:
            return self.window[0] <= step <= self.window[1]
        every = self.every_n_steps or max(FEWEST, trainer.max_steps // MOST)
        return step % every == 0 or (step < FEWEST and step & (step - 1) == 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.taken = Fingerprints(list(pl_module.state_dict()))
        self.groups = {id(p): group_of(name) for name, p in pl_module.named_parameters()}
        self.seen = set()
        self.handle = register_optimizer_step_pre_hook(self._keep_gradient)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any) -> None:
        step = trainer.global_step
        if self.taken is not None and self.wanted(step, trainer):
            with without_overrides():  # an audit would follow each of its operations
                self.taken.take(step, pl_module.state_dict(), (random_hash(), batch_hash(batch)))
        if self.window is not None and step >= self.window[1]:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.handle is not None and {id(getattr(o, "optimizer", o)) for o in trainer.optimizers} <= self.seen:
            self._leave()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.taken is not None:
            if self.window is None or self.wanted(trainer.global_step, trainer):
                self.taken.take(trainer.global_step, pl_module.state_dict())
            self._write()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._write()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._leave()

    def _keep_gradient(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The gradients of an optimiser's first step, by group. Rank 0 keeps them; all ranks give it their shards."""
        if id(optimizer) in self.seen:
            return
        self.seen.add(id(optimizer))
        groups: dict[str, list[Tensor]] = {}
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            gradient = torch.zeros_like(p) if p.grad is None else whole_of(p.grad)
            groups.setdefault(self.groups.get(id(p), "other"), []).append(gradient)
        for group, gradients in groups.items():
            if self.taken is not None:
                self.taken.gradients.setdefault(group, sketch(gradients, FINE))

    def _write(self) -> None:
        self._leave()
        if self.taken is not None and self.taken.steps:
            self.taken.save(self.folder / FILE)

    def _leave(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def batch_hash(batch: Any) -> int:
    """Of all tensors and arrays in a batch; 0 where it has none."""
    tensors = list(_tensors(batch))
    return tensor_hash(*tensors) if tensors else 0


def _tensors(batch: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            yield torch.from_numpy(leaf)
