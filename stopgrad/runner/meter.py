"""What a run costs: seconds of a step, bytes saved for backward, graph nodes, peak memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from stopgrad.cuts.torch_internals import version_of
from stopgrad.flow.graph import Walk


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
        with suppress(RuntimeError):  # a tensor of torch.func has none: it is not counted
            if storage.data_ptr() not in self.known:
                self.storages[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor.detach(), version_of(tensor)

    def _unpack(self, packed: tuple[Tensor, int]) -> Tensor:
        tensor, version = packed
        if version_of(tensor) != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{list(tensor.shape)} is at version {version_of(tensor)}; expected version {version}"
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
