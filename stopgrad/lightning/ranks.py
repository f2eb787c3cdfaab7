"""``RankAudit``: whether the ranks of a distributed run hold the same state."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from stopgrad.audits.ranks import Difference, RankDivergence, first_difference, sharded_tensors
from stopgrad.lightning.audit import Audit


class RankAudit(Audit):
    """Compare parameters, buffers and optimiser state over the ranks of a distributed run, bit for bit.

    Before the first batch, after it, after every n-th batch, and at the end. The error names the first tensor that
    differs, and between which steps it began to; with ``every_n_steps=1``, the very step. One process: nothing is done.

    Args:
        every_n_steps: compare after every n-th batch; None for the first batch and the end alone.
        on_violation: ``raise`` :class:`~stopgrad.audits.ranks.RankDivergence`, on all ranks, ``warn``, or ``record``.

    Attributes:
        difference: what the last comparison found, or None.
        sharded: the tensors of which each rank holds a shard alone; they are compared with their replicas, if any.
    """

    def __init__(self, every_n_steps: int | None = 500, on_violation: str = "raise") -> None:
        super().__init__(every_n_steps, on_violation)
        self.difference: Difference | None = None
        self.sharded: list[str] = []
        self._equal_after: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = True
        self._compare(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self._first or (self.every_n_steps and self.batches % self.every_n_steps == 0):
            self._first = False
            self._compare(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._equal_after != self.batches and self.difference is None:
            self._compare(trainer, pl_module)

    def _compare(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        optimizers = [getattr(o, "optimizer", o) for o in trainer.optimizers]
        self.sharded = sharded_tensors(module, optimizers)
        self.difference = first_difference(module, optimizers)
        if self.difference is None:
            self._equal_after = self.batches
            return
        since = "before the first batch" if self._equal_after is None else f"after batch {self.batches}"
        if self._equal_after is not None:
            since += f", and did not after batch {self._equal_after}"
        text = f"{self.difference} {since}"
        if self.on_violation == "raise":
            raise RankDivergence(text)
        if self.on_violation == "warn":
            warnings.warn(text, stacklevel=2)
