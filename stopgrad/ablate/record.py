"""What an arm leaves of its training, so that a comparison can judge it: fingerprints, gradients, losses."""

from __future__ import annotations

import csv
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stopgrad.compare.fingerprint import FINE, SKETCH, Fingerprints, group_of, random_hash, sketch, tensor_hash
from stopgrad.watch.names import loss_name, user_frames
from stopgrad.watch.parts import Parts

DENSE, LARGE = (64, 16), 1_000_000  # a fingerprint after each of the first steps; of as many where weights are many
EVERY, MOST = 50, 100  # and then after every so many, twice as many whenever there are so many of them
FINELY = 8  # the gradients of the first steps are projected more finely
KEPT = 2000  # values of one loss


class Record:
    """Listens to a training, and changes nothing of it.

    A step is one optimiser's: with two optimisers, a turn of both is two.

    Args:
        window: (first, last): a fingerprint after every step from first to last alone.
    """

    def __init__(self, window: tuple[int, int] | None = None) -> None:
        self.window = window
        self.step = 0
        self.taken = Fingerprints([])
        self.losses: dict[str, Thinned] = {}
        self._tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._parts = Parts()
        self._known: set[int] = set()
        self._every, self._sparse = EVERY, 0
        self._dense = DENSE[0]
        self._called: dict[tuple[CodeType | int | None, ...], str] = {}
        self._began = self._ended = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Listen inside."""
        original = torch.autograd.backward
        handles = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]

        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self._note_loss(tensors)
            return original(tensors, *args, **kwargs)

        torch.autograd.backward = backward
        try:
            yield
        finally:
            torch.autograd.backward = original
            for handle in handles:
                handle.remove()

    # ---- while it trains

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._known:
            self._meet(optimizer)
        if self._wanted(self.step):
            self.taken.take(self.step, self._tensors, (random_hash(), 0))
        if self._wanted(self.step + 1):
            self._keep_gradients(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        self._ended = time.perf_counter()
        self._began = self._began or self._ended

    def _wanted(self, step: int) -> bool:
        if self.window is not None:
            return self.window[0] <= step <= self.window[1]
        if step > self._dense and step % self._every == 0 and step not in self.taken.steps[-1:]:
            self._sparse += 1
            if self._sparse > MOST:
                self._sparse, self._every = self._sparse // 2, self._every * 2
        return step <= self._dense or step & (step - 1) == 0 or step % self._every == 0

    def _meet(self, optimizer: Optimizer) -> None:
        """Give a name to each tensor that the script's modules and this optimiser hold."""
        self._known.add(id(optimizer))
        self._parts.look()
        roots = self._parts.roots()
        found = [(f"{name}.{path}", t) for name, root in roots.items() for path, t in _tensors_of(root)]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        loose = self._parts.of(held)
        found += [(f"{part}.{k}" if len(ps) > 1 else part, p) for part, ps in loose.items() for k, p in enumerate(ps)]
        for name, tensor in found:
            if id(tensor) not in self._names and name not in self._tensors:
                self._names[id(tensor)], self._tensors[name] = name, tensor
                self.taken.names.append(name)
                for hashes in self.taken.hashes:
                    hashes.append(0)  # it was not there
        if sum(t.numel() for t in self._tensors.values()) > LARGE:
            self._dense = DENSE[1]

    def _keep_gradients(self, optimizer: Optimizer) -> None:
        groups: dict[str, list[Tensor]] = {}
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            groups.setdefault(group_of(self._names.get(id(p), "other")), []).append(gradient)
        size = FINE if self.step < FINELY else SKETCH
        sketches = {group: sketch(gradients, size) for group, gradients in groups.items()}
        self.taken.stepped[self.step + 1] = sketches
        for group, each in sketches.items() if size == FINE else ():
            self.taken.gradients.setdefault(group, each)

    def _note_loss(self, tensors: Any) -> None:
        loss = tensors[0] if isinstance(tensors, list | tuple) and len(tensors) == 1 else tensors
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.losses.setdefault(self._name(), Thinned()).add(self.step, loss.detach().clone())

    def _name(self) -> str:
        frames = user_frames()
        here, caller = next(frames, None), next(frames, None)
        if here is None:
            return "loss"
        key = here.f_code, here.f_lasti, *((caller.f_code, caller.f_lasti) if caller else (None, 0))
        if key not in self._called:
            self._called[key] = loss_name()[0]
        return self._called[key]

    # ---- at its end

    def finish(self) -> None:
        """The last fingerprint."""
        if self._tensors and (self.window is None or self._wanted(self.step)):
            self.taken.take(self.step, self._tensors, (random_hash(), 0))

    @property
    def step_time(self) -> float | None:
        """Seconds a step, on average."""
        return (self._ended - self._began) / (self.step - 1) if self.step > 1 else None

    def weights(self) -> str:
        """SHA-256 over names and bytes of all tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_hash(tensor)} ".encode())
        return digest.hexdigest()

    def last_losses(self) -> dict[str, float]:
        """Of each loss, the mean over its last tenth."""
        return {name: each.end() for name, each in self.losses.items()}

    def write_curves(self, file: Path, others: Mapping[str, list[tuple[int, float]]]) -> None:
        """All losses, and other numbers, by step, as the comparison reads them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        curves = {name: each.values() for name, each in self.losses.items()} | dict(others)
        with open(file, "w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, ["step", *curves])
            table.writeheader()
            for name, curve in curves.items():
                table.writerows({"step": step, name: repr(value)} for step, value in curve)


class Thinned:
    """The values of a loss: all at first, then every second, fourth, ... so that there are never too many."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Tensor]] = []
        self._count, self._stride = 0, 1

    def add(self, step: int, value: Tensor) -> None:
        if self._count % self._stride == 0:
            self._kept.append((step, value))
            if len(self._kept) > KEPT:
                self._kept, self._stride = self._kept[::2], self._stride * 2
        self._count += 1

    def values(self) -> list[tuple[int, float]]:
        return [(step, float(value)) for step, value in self._kept]

    def end(self) -> float:
        last = self._kept[-max(1, len(self._kept) // 10) :]
        return fmean(float(value) for _, value in last)


def _tensors_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()
