"""``RetentionAudit``: which kept tensors hold a graph."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from stopgrad.audits.retention import GraphRetained, Kept, growth, measured, unfinished
from stopgrad.audits.search import search
from stopgrad.lightning.audit import Audit, over_ranks


class RetentionAudit(Audit):
    """Tell which kept tensors hold a graph: among all that hangs on the module, the logged values and the callbacks.

    A place whose graph has grown between two looks is a violation: ``total_loss += loss``, outputs kept in a list. It
    looks after the batches 2, 4, 8, 16, ... of a fit, and after every n-th. What is searched, and how deep, tells
    :func:`~stopgrad.retention.kept_graphs`; the trainer is not entered.

    Args:
        every_n_steps: look after every n-th batch; None for the batches 2, 4, 8, 16, ... alone.
        on_violation: ``raise`` :class:`GraphRetained`, on all ranks, ``warn``, or ``record`` it in ``growing``.
        seconds: how long one search may take; when that is not enough, a warning says where it ended, and from then on
            it looks after the batches 2, 4, 8, 16, ... alone.

    Attributes:
        kept: what the last look found, growing or not.
        growing: the places that had grown at the last look, in words.
        left: the first place for which the last look had no time, or "".
    """

    def __init__(self, every_n_steps: int | None = 50, on_violation: str = "raise", seconds: float = 2.0) -> None:
        super().__init__(every_n_steps, on_violation)
        self.seconds = seconds
        self.kept: list[Kept] | None = None
        self.growing: list[str] = []
        self.left = ""
        self._since = 0  # batches of this fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept, self.growing, self.left, self._since = None, [], "", 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        self._since += 1
        early = self._since > 1 and self._since & (self._since - 1) == 0
        if not early and (self.left or self.every_n_steps is None or self.batches % self.every_n_steps):
            return
        roots = {
            "module": pl_module,
            "logged_metrics": trainer.logged_metrics,
            "callback_metrics": trainer.callback_metrics,
        }
        numbers: Counter[str] = Counter()
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            name = type(callback).__name__
            numbers[name] += 1
            roots[f"{name}[{numbers[name]}]" if numbers[name] > 1 else name] = callback
        found = search(roots, leave=[trainer, self.kept], seconds=self.seconds)
        before, self.kept = self.kept, measured(found.tensors, exclude=pl_module.parameters())
        grown = growth(before, self.kept) if before is not None else []
        told = over_ranks([(True, line) for line in grown] + [(False, found.left)] * bool(found.left))
        left = next((place for is_growth, place in told if not is_growth), "")
        if left and not self.left and self.on_violation != "record":
            warnings.warn(unfinished(left, self.seconds), stacklevel=2)
        self.left = left  # of any rank: all must look after the same batches
        self.growing = [line for is_growth, line in told if is_growth]
        if self.growing and self.on_violation == "raise":
            raise GraphRetained("\n".join(self.growing))
        if self.growing and self.on_violation == "warn":
            warnings.warn("\n".join(self.growing), stacklevel=2)
