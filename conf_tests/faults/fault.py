"""A fault on purpose, as a callback that a config can name: allow=[conf_tests]."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from conf_tests.faults.test_endings import out_of_space


class Fault(Callback):
    """At ``step`` this happens to one rank, once in the run of ``folder``."""

    def __init__(self, kind: str, folder: str, step: int = 40) -> None:
        self.kind, self.step, self.mark = kind, step, Path(folder, "fault")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        mine = trainer.global_rank == int(self.kind != "disk")
        if trainer.global_step != self.step or not mine or self.mark.exists():
            return
        self.mark.touch()
        if self.kind == "disk":
            os.fsync = out_of_space
        elif self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "raise":
            raise ValueError("on purpose,\nin two lines")
        elif self.kind == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else it is given half a minute to end its batch
            time.sleep(1000)
