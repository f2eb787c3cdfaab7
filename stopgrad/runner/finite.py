"""A loss that is NaN or infinite ends the run, with its name and the step."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from stopgrad.lightning import loss_being_named
from stopgrad.lightning.lightning_internals import batch_number
from stopgrad.runner.errors import RunFailed


class NonFiniteLoss(RunFailed):
    """A loss became NaN or infinite."""


class Finite(Callback):
    """Stops the run before the backward of a loss that is NaN or infinite, with the loss's name and the step.

    On the CPU at once. On an accelerator the answer stays on the device and is asked for where the run logs, so that no
    step waits for it; the step that is named is the right one all the same. An arm that is to show a divergence says
    ``callbacks: {finite: null}``.

    Args:
        at_once: look at every loss when it is computed; by default where that costs nothing.
    """

    def __init__(self, at_once: bool | None = None) -> None:
        self.at_once = at_once
        self.first: dict[str, tuple[Tensor, Tensor]] = {}  # loss: its first bad value, and the step, or -1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self.at_once or (self.at_once is None and loss.is_cpu):
            if not math.isfinite(loss.item()):
                raise NonFiniteLoss(f"{_name()} is {loss.item()} at step {batch_number(trainer)}")
            return
        name, value, step = _name(), loss.detach(), batch_number(trainer)
        first, when = self.first.get(name, (value, torch.full_like(value, -1, dtype=torch.int64)))
        new = ~torch.isfinite(value) & (when < 0)
        self.first[name] = torch.where(new, value, first), torch.where(new, step, when)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.first and trainer.global_step % trainer.log_every_n_steps == 0:  # pyright: ignore
            self._ask()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ask()

    def _ask(self) -> None:
        bad = [(int(when), name, first.item()) for name, (first, when) in self.first.items() if int(when) >= 0]
        if bad:
            step, name, value = min(bad)
            raise NonFiniteLoss(f"{name} is {value} at step {step}")


def _name() -> str:
    return loss_being_named() or "loss"
