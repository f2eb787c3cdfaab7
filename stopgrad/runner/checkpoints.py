"""Checkpoints that are whole or not there, hold no code, and are written once more when a run is asked to end."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from pydantic import PositiveInt

from stopgrad.lightning.lightning_internals import ask_no_rank_for_sigterm
from stopgrad.runner.errors import RunFailed

ENDINGS = (signal.SIGINT, signal.SIGTERM)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the file, to disk, then renames: a kill or a full disk leaves the checkpoint that was there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises RunFailed: the disk is full or the folder cannot be written."""
        file = Path(path)
        half_written = file.with_name(f".{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(half_written, "wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            half_written.replace(file)
            _sync_folder(file.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                half_written.unlink(missing_ok=True)
            kept = "; the one before is kept" if file.exists() else ""
            raise RunFailed(f"checkpoint {file}: cannot be written: {_reason(error)}{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", **options: Any) -> dict[str, Any]:
        """Tensors and plain values alone: a file that would run code is refused."""
        return torch.load(path, map_location=map_location, weights_only=True)


def _reason(error: BaseException) -> str:
    """What the system said. torch's writer hides a full disk behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).partition("\n")[0]


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class Ended(SystemExit):
    """The run was asked to end; the code is the shell's, 128 and the signal's number."""


def end(number: int, frame: Any) -> NoReturn:
    """A signal's handler: end here."""
    raise Ended(128 + number)


def on_sigterm(handler: Any) -> Any:
    """Set the handler, where Python allows it: in the main thread. Returns the one before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def last_since(config: DictConfig, began: float) -> Path | None:
    """The ``last.ckpt`` that a run has written since then."""
    folder = OmegaConf.select(config, "callbacks.last.dirpath")
    file = Path(folder or "", "last.ckpt")
    return file if folder and file.exists() and file.stat().st_mtime >= began else None


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` every ``every_n_train_steps`` batches, after the last one, and when the run is asked to end.

    Ctrl-C or SIGTERM lets the batch end, writes the checkpoint and ends the run, on all ranks at the same batch; a
    second one ends it at once.
    """

    AGREE = 10  # batches from one question whether another rank was asked to the next

    def __init__(self, dirpath: str, every_n_train_steps: PositiveInt) -> None:
        self.path, self.every_n_train_steps = Path(dirpath, "last.ckpt"), every_n_train_steps
        self._saved = 0  # the step of the last one, or of the beginning
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in ENDINGS}  # Lightning sets its own after this

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked, self._saved = 0, trainer.global_step
        for number in self._before:
            signal.signal(number, self._ask)
        ask_no_rank_for_sigterm(trainer)  # it would wait for the device to answer

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise Ended(128 + number)
        self._asked = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        asked, step = self._asked_any(trainer), trainer.global_step
        due = asked or step % self.every_n_train_steps == 0 or step == trainer.max_steps
        if due and step != self._saved:
            trainer.save_checkpoint(self.path)
            self._saved = step
        if asked:
            raise Ended(128 + asked)

    def _asked_any(self, trainer: L.Trainer) -> int:
        """The signal that this rank or, every few batches, any other has got."""
        if trainer.world_size == 1:
            return self._asked
        if trainer.global_step % self.AGREE:
            return 0
        return int(trainer.strategy.reduce(torch.tensor(float(self._asked)), reduce_op="max"))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
