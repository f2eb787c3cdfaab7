"""Numbers below 1e-38 count as 0 while a run trains: on a CPU, arithmetic with them takes a hundred times as long."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback


def flushed() -> bool:
    """Whether this thread takes denormal float32 numbers for 0."""
    return not bool(torch.tensor(1e-39) * 1.0 > 0)


class FlushDenormals(Callback):
    """Flushes denormal numbers in a fit, and leaves the setting as it was.

    An optimiser's averages of a unit that is dead, or of a weight that nothing reaches, halve every few steps and stay
    denormal for as long as the run lasts. What they would add to a weight is lost in rounding.
    """

    def __init__(self) -> None:
        self.before: bool | None = None

    def on_fit_start(self, *args: Any) -> None:
        self.before = flushed()
        torch.set_flush_denormal(True)

    def on_fit_end(self, *args: Any) -> None:
        self._leave()

    def on_exception(self, *args: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        if self.before is not None:
            torch.set_flush_denormal(self.before)
            self.before = None
