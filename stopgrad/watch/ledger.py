"""The books of a run: which backward wrote which gradient, who cleared it, and which step used it.

A gradient is read by identity and version before and after each backward: exact, without walking a graph. It is judged
when it is cleared and when it is stepped, never when it accumulates. Parameters and optimisers are known by numbers
that are never used twice, since Python gives the address of one that died to another.
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


@dataclass(frozen=True)
class Use:
    """A step that used what a backward wrote."""

    backward: Backward
    batch: int
    optimizer: int


@dataclass(eq=False)
class Gradient:
    """A parameter's gradient: who wrote it since it was last cleared, and which of these writes a step has used."""

    parameter: weakref.ref[Tensor]
    identity: int | None = None
    version: int = -1
    value: int = -1  # the parameter's own version after its last backward
    writers: list[Backward] = field(default_factory=list)
    used: list[Use] = field(default_factory=list)  # since the last clear
    asked: Backward | None = None  # the last autograd.grad that was asked for it, which a write by hand may use


@dataclass(eq=False)
class Known:
    """An optimiser: the variable that holds it, its class, and where it was made."""

    optimizer: weakref.ref[Optimizer]
    name: str
    kind: str
    home: str  # the module of its class
    file: str
    line: int
    holds: list[int] = field(default_factory=list)  # its parameters, each as often as it is held
    total: int = 0  # steps, also those that are not in the books
    steps: int = 0
    empty_steps: int = 0  # that found no gradient at all
    stepped_at: tuple[str, int] = ("", 0)

    @property
    def title(self) -> str:
        return self.name or self.kind

    def has_grown(self, optimizer: Optimizer) -> bool:
        """Whether it holds more than at its last step, as where a layer is unfrozen."""
        if not self.steps:
            return False
        count = 0
        for group in optimizer.param_groups:
            count += len(group["params"])
        return count > len(self.holds)


class Ledger:
    """What happened so far. Names are resolved when it is read.

    Attributes:
        gradients: by the number of the parameter, of those that are alive.
        optimizers: by number, in the order in which they were made.
        losses: name -> (file, line, how often).
        wrote: (loss, parameter) -> how often its backward wrote there.
        uses: (loss, parameter, optimiser, kind) -> how often; kinds: ``own``, ``leak`` (another loss's), ``again`` (a
            step before had used it), ``twice`` (so has another optimiser, with no backward in between).
        wasted: (loss, parameter) -> how often a write was cleared before any step used it.
        by_hand: (loss, parameter) -> how often the script itself wrote to the parameter before the clear.
        required: parameters that required grad at some backward.
        rebuilt: losses that were leaves: nothing lies behind them.
    """

    def __init__(self) -> None:
        self.gradients: dict[int, Gradient] = {}
        self.optimizers: dict[int, Known] = {}
        self.losses: dict[str, tuple[str, int, int]] = {}
        self.wrote: Counter[tuple[str, int]] = Counter()
        self.uses: Counter[tuple[str, int, int, str]] = Counter()
        self.wasted: Counter[tuple[str, int]] = Counter()
        self.by_hand: Counter[tuple[str, int]] = Counter()
        self.required: set[int] = set()
        self.rebuilt: Counter[str] = Counter()
        self.running: Backward | None = None
        self.number = 0
        self.batch = 0
        self._numbers: dict[int, int] = {}  # id of a parameter -> its number
        self._next = 0
        self._stepping = False  # the last event was a step

    # ---- who is there

    def know(self, parameters: Iterable[Tensor]) -> None:
        for p in parameters:
            if self.key(p) is None:
                self._numbers[id(p)] = self._next
                self.gradients[self._next] = Gradient(weakref.ref(p))
                self._next += 1

    def key(self, parameter: Tensor) -> int | None:
        """The number of a parameter that is known."""
        number = self._numbers.get(id(parameter))
        known = number is not None and number in self.gradients and self.gradients[number].parameter() is parameter
        return number if known else None

    def parameters(self) -> dict[int, Tensor]:
        """Those that are alive, by number."""
        return {key: p for key, entry in self.gradients.items() if (p := entry.parameter()) is not None}

    def meet(self, optimizer: Optimizer, name: str = "", line: tuple[str, int] = ("", 0)) -> int:
        """The number of an optimiser, which is entered if it is new."""
        for key, known in self.optimizers.items():
            if known.optimizer() is optimizer:
                return key
        key = len(self.optimizers)
        kind = type(optimizer)
        self.optimizers[key] = Known(weakref.ref(optimizer), name, kind.__name__, kind.__module__, *line)
        self._take_stock(key, optimizer)
        return key

    def _take_stock(self, key: int, optimizer: Optimizer) -> list[int]:
        parameters = held(optimizer)
        self.know(parameters)
        holds = [number for p in parameters if (number := self.key(p)) is not None]
        self.optimizers[key].holds = holds
        return holds

    def holders(self) -> dict[int, list[int]]:
        """Parameter -> the optimisers that hold it."""
        found: dict[int, list[int]] = {}
        for key, known in self.optimizers.items():
            for parameter in dict.fromkeys(known.holds):
                found.setdefault(parameter, []).append(key)
        return found

    def groups(self) -> list[set[int]]:
        """The ids of the parameters of each optimiser, of those that are alive."""
        alive = self.parameters()
        return [{id(alive[key]) for key in known.holds if key in alive} for known in self.optimizers.values()]

    @property
    def steps(self) -> int:
        """Of all optimisers."""
        return sum(known.steps for known in self.optimizers.values())

    # ---- events

    def before_backward(self, loss: str, file: str, line: int) -> bool:
        """Whether a gradient that a step had used was cleared since the last look."""
        cleared = self.settle()
        self.running = Backward(loss, file, line, self.number + 1)
        return cleared

    def after_backward(self, is_leaf: bool = False, finished: bool = True) -> None:
        backward, self.running = self.running, None
        if backward is None or not finished:
            return
        self.number += 1
        self._stepping = False
        self.rebuilt[backward.loss] += is_leaf
        self._count(backward)
        for key, entry in self.gradients.items():
            p = entry.parameter()
            if p is None:
                continue
            if p.requires_grad:
                self.required.add(key)
            if p.grad is not None:
                self._written(key, entry, p, backward)

    def asked(self, loss: str, file: str, line: int, parameters: Iterable[Tensor]) -> None:
        """``autograd.grad`` was asked for the gradient of some parameters: a write to ``.grad`` may follow."""
        backward = Backward(loss, file, line, self.number)
        self._count(backward)
        for p in parameters:
            key = self.key(p)
            if key is not None:
                self.required.add(key)
                self.gradients[key].asked = backward

    def _count(self, backward: Backward) -> None:
        file, line, count = self.losses.get(backward.loss, (backward.file, backward.line, 0))
        self.losses[backward.loss] = file, line, count + 1

    def _written(self, key: int, entry: Gradient, parameter: Tensor, backward: Backward) -> None:
        assert parameter.grad is not None
        entry.value = version_of(parameter)
        if id(parameter.grad) != entry.identity or version_of(parameter.grad) != entry.version:
            entry.writers.append(backward)
            self.wrote[backward.loss, key] += 1
            entry.identity, entry.version = id(parameter.grad), version_of(parameter.grad)

    def forget(self) -> None:
        """Gradients were written, cleared and stepped unseen: who wrote what is there now is not known."""
        for entry in self.gradients.values():
            entry.writers.clear()
            entry.used.clear()
            entry.asked = None
            p = entry.parameter()
            if p is not None and p.grad is not None:
                entry.identity, entry.version = id(p.grad), version_of(p.grad)

    def settle(self) -> bool:
        """Note which gradients were cleared since the last look, by whatever means; forget who died.

        Returns:
            Whether one was cleared that a step, or the script itself, had used.
        """
        dead, cleared = [], False
        for key, entry in self.gradients.items():
            p = entry.parameter()
            if p is None:
                dead.append(key)
            elif not entry.writers:
                if p.grad is not None and self.running is not None:  # a step from within a backward
                    self._written(key, entry, p, self.running)
                elif p.grad is not None and (id(p.grad), version_of(p.grad)) != (entry.identity, entry.version):
                    if entry.asked is not None and torch.count_nonzero(p.grad.detach()):
                        self._written(key, entry, p, entry.asked)
                    entry.identity, entry.version = id(p.grad), version_of(p.grad)
            elif p.grad is None:
                cleared |= self._cleared(key, entry, p)
            elif id(p.grad) != entry.identity or version_of(p.grad) != entry.version:
                asked = entry.asked if id(p.grad) != entry.identity and entry.asked not in entry.writers else None
                if asked is not None or not torch.count_nonzero(p.grad.detach()):
                    cleared |= self._cleared(key, entry, p)
                if asked is not None:  # p.grad = ..., in the place of what was there
                    self._written(key, entry, p, asked)
                entry.identity, entry.version = id(p.grad), version_of(p.grad)
        for key in dead:
            del self.gradients[key]
        return cleared

    def _cleared(self, key: int, entry: Gradient, parameter: Tensor) -> bool:
        used = {id(use.backward) for use in entry.used}
        by_hand = not used and version_of(parameter) != entry.value
        for backward in entry.writers:
            if id(backward) not in used:
                (self.by_hand if by_hand else self.wasted)[backward.loss, key] += 1
        entry.writers.clear()
        entry.used.clear()
        entry.identity = None
        return bool(used) or by_hand

    def piled(self) -> dict[int, int]:
        """Parameter -> writes since it was last cleared, where no step has used them."""
        return {key: len(entry.writers) for key, entry in self.gradients.items() if entry.writers and not entry.used}

    def step(self, optimizer: Optimizer, line: tuple[str, int]) -> None:
        """A step is about to be made, or, where it runs a closure, was made."""
        self.settle()
        if not self._stepping:
            self.batch += 1
            self._stepping = True
        owner = self.meet(optimizer)
        known = self.optimizers[owner]
        known.steps += 1
        known.stepped_at = known.stepped_at if known.stepped_at[0] else line
        entries = [(key, self.gradients[key]) for key in dict.fromkeys(self._take_stock(owner, optimizer))]
        for _, entry in entries:
            for backward in entry.writers:
                if backward.batch in (None, self.batch):
                    backward.batch = self.batch
                    backward.owners.add(owner)
        found = False
        for key, entry in entries:
            p = entry.parameter()
            found |= p is not None and p.grad is not None
            before = {id(use.backward): use for use in entry.used}
            for backward in entry.writers:
                use = before.get(id(backward))
                if use is None:
                    kind = "own" if owner in backward.owners else "leak"
                    entry.used.append(Use(backward, self.batch, owner))
                else:
                    kind = "twice" if use.optimizer != owner and use.batch == self.batch else "again"
                self.uses[backward.loss, key, owner, kind] += 1
        known.empty_steps += not found


def held(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimiser, each as often as it is held."""
    return [p for group in optimizer.param_groups for p in group["params"] if isinstance(p, Tensor)]
