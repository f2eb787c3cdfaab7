"""``FlowCallback``: a training by the Trainer of transformers is watched, and its end tells what was found."""

from __future__ import annotations

import atexit
from typing import Any

from torch import nn

from stopgrad.watch.report import Report
from stopgrad.watch.session import Session

try:
    from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError("stopgrad.huggingface needs transformers: pip install 'stopgrad[clients]'") from error

_open: FlowCallback | None = None  # whose training has not ended: of an exception the Trainer tells no callback


class FlowCallback(TrainerCallback):
    """Watches each ``train()`` as ``python -m stopgrad run`` does, and prints at its end the matrix and the findings.

    ``Trainer(..., callbacks=[FlowCallback()])``. The Trainer tells no callback of an exception: where one ends the
    training, the report is printed when the process ends or the next training begins.

    Args:
        every: measure every so many cycles, after the first ones.

    Attributes:
        report: of the last training that has ended; None before.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self.report: Report | None = None
        self._session: Session | None = None
        self._speaks = True

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any = None, **kwargs: Any
    ) -> None:
        global _open
        if _open is not None:
            _open._end(broken=True)
        self._speaks = state.is_world_process_zero
        self._session = Session("model", model, self.every)
        if optimizer is not None:
            self._session.meet(getattr(optimizer, "optimizer", optimizer))
        _open = self
        atexit.register(self._end, broken=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end()

    def _end(self, broken: bool = False) -> None:
        global _open
        atexit.unregister(self._end)
        if self._session is None:
            return
        session, self._session, _open = self._session, None, None
        self.report = session.end(broken=broken)
        if session.is_outer and self._speaks:
            print(f"\n{self.report}", flush=True)
