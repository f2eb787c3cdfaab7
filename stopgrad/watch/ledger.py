"""The books of a run: which backward wrote which gradient, who cleared it, and which step used it.

A gradient is read by identity and version before and after each backward: exact, without walking a graph. It is judged
when it is cleared and when it is stepped, never when it accumulates.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from stopgrad.cuts.torch_internals import version_of


@dataclass(eq=False)
class Backward:
    """One backward: the loss's name and line, its number, and the optimisers whose step followed it."""

    loss: str
    file: str
    line: int
    number: int
    owners: set[int] = field(default_factory=set)
    batch: int | None = None  # the batch of steps that followed first


@dataclass(eq=False)
class Gradient:
    """A parameter's gradient: who wrote it since it was last cleared, and which of these writes a step has used."""

    parameter: weakref.ref[Tensor]
    identity: int | None = None
    version: int = -1
    writers: list[Backward] = field(default_factory=list)
    used: list[tuple[Backward, int]] = field(default_factory=list)  # (write, batch of steps) since the last clear


@dataclass(eq=False)
class Known:
    """An optimiser: the variable that holds it, its class, and where it was made."""

    optimizer: weakref.ref[Optimizer]
    name: str
    kind: str
    file: str
    line: int
    holds: list[int] = field(default_factory=list)  # ids of its parameters, each as often as it is held


class Ledger:
    """What happened so far. Names are resolved when it is read.

    Attributes:
        losses: name -> (file, line, how often).
        wrote: (loss, id of parameter) -> how often its backward wrote there.
        uses: (loss, id of parameter, id of optimiser, kind) -> how often; kinds: ``own``, ``leak``, ``again``.
        wasted: (loss, id of parameter) -> how often a write was cleared before any step used it.
        empty_steps: id of optimiser -> steps that found no gradient at all.
    """

    def __init__(self) -> None:
        self.gradients: dict[int, Gradient] = {}
        self.optimizers: dict[int, Known] = {}
        self.steps: Counter[int] = Counter()
        self.empty_steps: Counter[int] = Counter()
        self.losses: dict[str, tuple[str, int, int]] = {}
        self.wrote: Counter[tuple[str, int]] = Counter()
        self.uses: Counter[tuple[str, int, int, str]] = Counter()
        self.wasted: Counter[tuple[str, int]] = Counter()
        self.step_lines: dict[int, tuple[str, int]] = {}
        self.backwards: list[Backward] = []
        self.number = 0
        self.batch = 0
        self._stepping = False  # the last event was a step

    # ---- parameters

    def know(self, parameters: Iterable[Tensor]) -> None:
        for p in parameters:
            entry = self.gradients.get(id(p))
            if entry is None or entry.parameter() is not p:
                self.gradients[id(p)] = Gradient(weakref.ref(p))

    def parameters(self) -> list[Tensor]:
        return [p for entry in self.gradients.values() if (p := entry.parameter()) is not None]

    def optimizer(self, optimizer: Optimizer, name: str, line: tuple[str, int]) -> None:
        self.optimizers[id(optimizer)] = Known(weakref.ref(optimizer), name, type(optimizer).__name__, *line)
        self.know(held(optimizer))

    # ---- events

    def before_backward(self) -> None:
        self.settle()

    def after_backward(self, loss: str, file: str, line: int) -> Backward:
        self.number += 1
        self._stepping = False
        backward = Backward(loss, file, line, self.number)
        first, at, count = self.losses.get(loss, (file, line, 0))
        self.losses[loss] = (first, at, count + 1)
        for key, entry in self.gradients.items():
            p = entry.parameter()
            if p is None or p.grad is None:
                continue
            if id(p.grad) != entry.identity or version_of(p.grad) != entry.version:
                entry.writers.append(backward)
                self.wrote[loss, key] += 1
                entry.identity, entry.version = id(p.grad), version_of(p.grad)
        self.backwards = [b for b in self.backwards if b.batch is None] + [backward]
        return backward

    def settle(self) -> None:
        """Note which gradients were cleared since the last look, by whatever means."""
        for key, entry in self.gradients.items():
            if not entry.writers:
                p = entry.parameter()
                if p is not None and p.grad is not None:
                    entry.identity, entry.version = id(p.grad), version_of(p.grad)
                continue
            p = entry.parameter()
            if p is None:
                entry.writers.clear()
            elif p.grad is None:
                self._cleared(key, entry)
            elif id(p.grad) != entry.identity or version_of(p.grad) != entry.version:
                if not torch.count_nonzero(p.grad.detach()):
                    self._cleared(key, entry)
                entry.identity, entry.version = id(p.grad), version_of(p.grad)

    def _cleared(self, key: int, entry: Gradient) -> None:
        used = {id(b) for b, _ in entry.used}
        for backward in entry.writers:
            if id(backward) not in used:
                self.wasted[backward.loss, key] += 1
        entry.writers.clear()
        entry.used.clear()
        entry.identity = None

    def step(self, optimizer: Optimizer, line: tuple[str, int], inside: bool = False) -> None:
        """A step is about to be made; ``inside`` a closure's own loop, where a gradient counts as used."""
        self.settle()
        if not self._stepping:
            self.batch += 1
            self._stepping = True
        key = id(optimizer)
        self.step_lines.setdefault(key, line)
        self.steps[key] += 1
        found = False
        if key in self.optimizers:
            self.optimizers[key].holds = [id(p) for p in held(optimizer)]
        entries = [(id(p), self.gradients[id(p)]) for p in held(optimizer) if id(p) in self.gradients]
        for _, entry in entries:
            for backward in entry.writers:
                if backward.batch in (None, self.batch):
                    backward.batch = self.batch
                    backward.owners.add(key)
        for k, entry in entries:
            p = entry.parameter()
            found |= p is not None and p.grad is not None
            spent = {id(b) for b, batch in entry.used if batch != self.batch}
            for backward in entry.writers:
                kind = "again" if id(backward) in spent else "own" if key in backward.owners else "leak"
                self.uses[backward.loss, k, key, kind] += 1
            entry.used += [(b, self.batch) for b in entry.writers if id(b) not in spent]
        if not found:
            self.empty_steps[key] += 1


def held(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimiser, each as often as it is held."""
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]
