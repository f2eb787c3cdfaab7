"""``RetentionAudit``: which kept tensors hold a graph."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from stopgrad.audits.retention import GraphRetained, Kept, growth, kept_graphs
from stopgrad.lightning.audit import Audit, over_ranks


class RetentionAudit(Audit):
    """Tell which kept tensors hold a graph: in the module's attributes, the logged values and the callbacks.

    A place whose graph has grown between two checks is a violation: ``total_loss += loss``, outputs kept in a list.

    Args:
        every_n_steps: check after every n-th batch.
        on_violation: ``raise`` :class:`GraphRetained`, on all ranks, ``warn``, or ``record`` it in ``growing``.

    Attributes:
        kept: what the last check found, growing or not.
        growing: the places that had grown at the last check, in words.
    """

    def __init__(self, every_n_steps: int = 50, on_violation: str = "raise") -> None:
        super().__init__(every_n_steps, on_violation)
        self.kept: list[Kept] | None = None
        self.growing: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept, self.growing = None, []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self.every_n_steps is None or self.batches % self.every_n_steps:
            return
        roots = {
            "module": pl_module,
            "logged_metrics": trainer.logged_metrics,
            "callback_metrics": trainer.callback_metrics,
        }
        roots |= {type(c).__name__: c for c in trainer.callbacks}  # pyright: ignore[reportAttributeAccessIssue]
        before, self.kept = self.kept, kept_graphs(roots, exclude=pl_module.parameters())
        self.growing = found = over_ranks(growth(before, self.kept) if before is not None else [])
        if found and self.on_violation == "raise":
            raise GraphRetained("\n".join(found))
        if found and self.on_violation == "warn":
            warnings.warn("\n".join(found), stacklevel=2)
