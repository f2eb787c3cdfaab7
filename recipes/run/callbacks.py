"""What every run carries: exact resume, the costs of a step, the progress bar."""

from __future__ import annotations

import math
import random
import resource
import statistics
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from recipes.run.errors import RunFailed
from stopgrad.graph import Walk
from stopgrad.lightning import loss_being_named


def progress_bar() -> Callback | None:
    """Lightning's bar where a person watches, and none where output goes to a file."""
    return TQDMProgressBar(refresh_rate=20) if sys.stderr.isatty() else None


class RandomStreams(Callback):
    """Keeps in the checkpoint what each rank has for itself, so that a resumed run draws what it would have drawn.

    That is the random states of Python, NumPy and torch, and the state of the data's loader (a position, or
    environments in mid-episode). Random states are restored at the first batch after the resume, once set-up has drawn
    what it draws. All is stored as tensors and plain values, so that the checkpoint loads with ``weights_only=True``.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        checkpoint["ranks"] = over_ranks({"random": random_states(), "loaders": loaders})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        mine = checkpoint["ranks"][trainer.global_rank % len(checkpoint["ranks"])]
        self.restored = mine["random"]
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = mine["loaders"]

    def on_train_batch_start(self, *args: Any) -> None:
        if self.restored is not None:
            state, self.restored = self.restored, None
            restore_random_states(state)


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


def over_ranks(value: Any) -> list[Any]:
    """``value`` of every rank; of the only one, where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


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
        name, value, step = loss_being_named() or "loss", loss.detach(), trainer.fit_loop.epoch_loop.total_batch_idx
        if self.at_once or (self.at_once is None and value.device.type == "cpu"):
            if not math.isfinite(value.item()):
                raise NonFiniteLoss(f"{name} is {value.item()} at step {step}")
            return
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


class SavedBytes:
    """Counts the bytes of distinct storage that autograd saves for backward, beyond parameters and buffers.

    Saved tensors stay under PyTorch's check for in-place changes, which plain hooks would switch off.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self.storages: dict[int, tuple[Any, int]] = {}  # the storage is held, so that its address is not used again
        self.hooks = saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor.detach(), tensor._version

    def _unpack(self, packed: tuple[Tensor, int]) -> Tensor:
        tensor, version = packed
        if tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{list(tensor.shape)} is at version {tensor._version}; expected version {version}"
            )
        return tensor

    @property
    def total(self) -> int:
        return sum(size for _, size in self.storages.values())


class Meter(Callback):
    """Costs: seconds of every batch, saved bytes and graph nodes of the first, peak memory; and the last losses."""

    def __init__(self) -> None:
        self.saved_bytes: int | None = None
        self.graph_nodes = 0
        self.started = 0.0
        self.metrics: dict[str, float] = {}
        self.times: deque[float] = deque(maxlen=100_000)
        self._saved: SavedBytes | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.saved_bytes is None:
            self._saved = SavedBytes(pl_module)
            self._saved.hooks.__enter__()
            reset_peak_memory()
        self.started = time.perf_counter()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self._saved is not None:
            self.graph_nodes += Walk(loss).nodes

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.perf_counter() - self.started)
        self._leave()

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}

    def on_exception(self, *args: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._saved is not None:
            self._saved.hooks.__exit__(None, None, None)
            self.saved_bytes, self._saved = self._saved.total, None

    def costs(self) -> dict[str, float | int | None]:
        """Median step time in seconds (without the first, measured, step), saved and peak bytes, nodes."""
        return {
            "step_time": statistics.median(list(self.times)[1:]) if len(self.times) > 1 else None,
            "saved_bytes": self.saved_bytes,
            "graph_nodes": self.graph_nodes,
            "peak_memory": peak_memory(),
        }


def reset_peak_memory() -> None:
    """Forget earlier peaks, so that a later arm of a sweep is not charged for an earlier one (CUDA and Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes since :func:`reset_peak_memory`: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
