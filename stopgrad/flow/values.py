"""The value graph of an audited step: what each tensor was computed from, kept across every cut."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ESCAPES = ("item", "tolist", "numpy")  # ways out of PyTorch: a Python number or a NumPy array
LIVE, FOREIGN, STARTS, FUNCTION, OPEN = 1, 2, 4, 8, 16  # flags of a value
CHECKPOINT = "a checkpoint that needs use_reentrant=False"
LONG_PATH, ENDS = 40, 4  # a path of more operations is told by its two ends


@dataclass(frozen=True)
class CutSite:
    """Where a value went on and its gradient did not.

    Attributes:
        kind: ``detach``, ``detach_``, ``data``, ``no_grad``, ``inference_mode``, ``torch.tensor``,
            ``no_derivative`` (argmax, a cast to int, a comparison, ``autograd.grad`` without ``create_graph``),
            ``requires_grad`` (a frozen parameter was used), ``function`` (a custom Function that returns None), or,
            for what left PyTorch as a Python number or an array: ``item``, ``tolist``, ``numpy``.
        file, line: the innermost frame outside torch and stopgrad; at a boundary, the line that crosses it.
        boundary: the boundary's name, or None.
        op: the operation, as PyTorch names it, or the frozen parameter. Two sites that differ in it alone are equal.
    """

    kind: str
    file: str
    line: int
    boundary: str | None = None
    op: str = field(default="", compare=False)

    @property
    def is_reentrant(self) -> bool:
        """A reentrant checkpoint ran it without a graph, and none of the checkpoint's inputs requires grad."""
        return self.op == CHECKPOINT

    def __str__(self) -> str:
        shown = self.op and self.boundary is None and self.kind in ("no_derivative", "function", "requires_grad")
        what = self.op if self.is_reentrant else f"{self.kind} ({self.op})" if shown else self.kind
        at = f" at {place(self.file, self.line)}"
        return f"{what}{at}{f' (stop.{self.boundary})' if self.boundary else ''}"


_cell_names: list[Callable[[str], str | None]] = []


def name_cells(*name: Callable[[str], str | None]) -> None:
    """Let a notebook's extension say which cell a file stands for, such as ``In[3]``; or no more, without arguments."""
    _cell_names[:] = name


def place(file: str, line: int) -> str:
    """``file:line``, relative to the working directory where the file lies below it."""
    if not file:
        return "an unknown line"
    for name in _cell_names:
        if cell := name(file):
            return f"{cell}:{line}"
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if relative.startswith('..') else relative}:{line}"


class _Numbers(dict[Any, int]):
    """A number for each of some things: the next one for what is new. ``known`` are those, by number."""

    def __init__(self, known: list[Any]) -> None:
        super().__init__((each, number) for number, each in enumerate(known))
        self.known = known

    def __missing__(self, new: Any) -> int:
        self.known.append(new)
        return self.setdefault(new, len(self))


class Values:
    """All values of an audited step, in flat arrays: a value is an index, and its parents have smaller ones.

    It holds no tensor and no object for each value, so that 200,000 operations in a row take some 50 bytes each and are
    freed at once; values that held their parents would be freed one inside the other.

    Attributes:
        roots: so many values, the first ones, are the parameters of the parts.
        connected: for each value, the bits of the parts that it depends on.
        flags: for each value, LIVE (the result required grad), FOREIGN (made before the audit began), STARTS (a part or
            a boundary starts here), FUNCTION (made by a node that no operation was seen to make), OPEN (neither it nor
            what it was computed from has a cut, a mode, or one of the flags FOREIGN and FUNCTION).
        cuts, modes: for each value, the kind of cut made here; ``no_grad`` or ``inference_mode`` if it was computed
            there, which is a cut only where the value leaves that mode. As indices into ``kinds``; 0 is neither.
    """

    def __init__(self) -> None:
        self.roots = 0
        self.connected: list[int] = []
        self.flags, self.cuts, self.modes = bytearray(), bytearray(), bytearray()
        self._kinds, self._numbers = _Numbers(["", *ESCAPES]), _Numbers([])
        self.kinds = self._kinds.known
        self.first, self.parents = array("i", [0]), array("i")  # of value i: parents[first[i] : first[i + 1]]
        self.starts: dict[int, int] = {}  # the bits of the parts that start at a value
        self._made = array("i")  # of each value, as an index: its operation, site and module, which many have in common
        self._makings: list[tuple[str, tuple[str, int], str]] = self._numbers.known
        self._boundaries: dict[int, str] = {}
        self._texts: dict[tuple[str, tuple[str, int]], str] = {}

    def __len__(self) -> int:
        return len(self.flags)

    def new(
        self,
        op: str,
        parents: Sequence[int],
        site: tuple[str, int],
        *,
        parts: int = 0,
        cut: str = "",
        mode: str = "",
        boundary: str | None = None,
        module: str = "",
        flags: int = 0,
    ) -> int:
        """Add a value, computed at ``site`` (file and line) in ``module`` (its dotted name), and return its index.

        Args:
            parts: bits of the parts (parameter groups, boundaries) that start here.
        """
        index, known = len(self.flags), self.flags  # what follows runs for every operation
        self._made.append(self._numbers[op, site, module])
        self.cuts.append(self._kinds[cut] if cut else 0)
        self.modes.append(self._kinds[mode] if mode else 0)
        if boundary is not None:
            self._boundaries[index] = boundary
        if parts:
            self.starts[index] = parts
            flags |= STARTS
        self.parents.extend(parents)
        self.first.append(len(self.parents))
        self.connected.append(0 if cut and cut in ESCAPES else self._union(parents, parts))
        flags |= FUNCTION if op.endswith("Backward") else 0
        if not (cut or mode or flags & (FOREIGN | FUNCTION)):
            flags |= OPEN
            for parent in parents:
                flags &= known[parent] | ~OPEN
        known.append(flags)
        return index

    def behind(self, index: int) -> int:
        """The bits of the parts that a value's parents depend on. Values that agree share one number."""
        return self._union(self.parents[self.first[index] : self.first[index + 1]])

    def _union(self, parents: Iterable[int], mask: int = 0) -> int:
        for parent in parents:
            more = self.connected[parent]
            mask = more if not mask or mask == more else mask | more if more | mask != mask else mask
        return mask

    def op(self, index: int) -> str:
        return self._makings[self._made[index]][0]

    def module(self, index: int) -> str:
        return self._makings[self._made[index]][2]

    def line(self, index: int) -> tuple[str, int]:
        return self._makings[self._made[index]][1]

    def key(self, index: int) -> tuple[Any, ...]:
        """What tells one cut from another: its kind, line and boundary."""
        kind = self.cuts[index] or self.modes[index]
        return kind, *self.line(index), self._boundaries.get(index)

    def site(self, index: int) -> CutSite:
        kind = self.kinds[self.cuts[index] or self.modes[index]] or "function"
        return CutSite(kind, *self.line(index), self._boundaries.get(index), self.op(index))

    def text(self, index: int) -> str:
        """The operation and its line."""
        op, site, _ = self._makings[self._made[index]]
        key = op, site
        if key not in self._texts:
            self._texts[key] = f"{op} ({place(*site)})" if site[0] else op
        return self._texts[key]


class Trace:
    """What one value, a loss, was computed from: in time linear in those of its ancestors behind which is a cut.

    Attributes:
        connected: the bits of the parts that its value depends on.
        escaped: the bits of those from which a number in it came that left PyTorch on the way.
        foreign: some of it was made before the audit began.
    """

    def __init__(self, values: Values, loss: int) -> None:
        self.connected = values.connected[loss]
        self.escaped = 0
        self.foreign = False
        self._values, self._loss = values, loss
        self._cuts: dict[tuple[Any, ...], tuple[int, int]] = {}  # bits of parts, and the value that cuts them
        self._escapes: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._paths: _Paths | None = None
        if not values.flags[loss] & OPEN:
            self._find()

    def _find(self) -> None:
        values, cuts = self._values, self._cuts
        first, parents, modes, escapes = values.first, values.parents, values.modes, len(ESCAPES)
        seen, left, functions, index = bytearray(self._loss + 1), {self._loss}, {}, self._loss
        stopped = 0
        while index >= values.roots:
            for parent in parents[first[index] : first[index + 1]]:
                seen[parent] = not values.flags[parent] & OPEN
                if modes[parent] and not modes[index]:
                    left.add(parent)  # something outside of no_grad or inference_mode used it
            flags, kind = values.flags[index], values.cuts[index]
            self.foreign |= bool(flags & FOREIGN)
            if 0 < kind <= escapes:
                mask = values.behind(index)
                self._escapes[mask, values.key(index)] = mask, index
                self.escaped |= mask
            elif kind or (modes[index] and index in left):
                mask = values.connected[index]
                stopped |= mask
                cuts.setdefault((mask, values.key(index)), (mask, index))
            elif flags & FUNCTION:
                functions.setdefault((values.connected[index], values.key(index)), index)
            index = seen.rfind(1, 0, index)
        # Only where no cut is known can a custom Function be what stopped the gradient.
        found = {key: (key[0] & ~stopped, index) for key, index in functions.items()}
        self._cuts = {**{("function", *key): found[key] for key in found}, **cuts}

    def cuts_of(self, bit: int) -> tuple[CutSite, ...]:
        """Every cut between the loss and a part, nearest to the loss first."""
        return tuple(dict.fromkeys(self._values.site(i) for mask, i in self._cuts.values() if mask & bit))

    def escapes_of(self, bit: int) -> tuple[CutSite, ...]:
        """Where a part's value left PyTorch on its way to the loss, the oldest first."""
        found = [self._values.site(i) for mask, i in self._escapes.values() if mask & bit]
        return tuple(dict.fromkeys(reversed(found)))

    def live_path(self, bit: int) -> tuple[str, ...] | None:
        """The shortest path of operations, and their lines, from the loss to a part along which gradient flows.

        () if there is none, None if it leads through values that were made before the audit began. Of a long one, both
        ends.
        """
        if self._paths is None:
            self._paths = _Paths(self._values, self._loss)
        return self._paths.to(bit)


class _Paths:
    """The shortest live paths from a loss to the parts, looked for as far as they are asked for."""

    def __init__(self, values: Values, loss: int) -> None:
        self._values, self._loss = values, loss
        self._low = min(values.roots, loss)
        size = loss - self._low + 1
        # For each value but the roots: its distance from the loss + 1, the next one on the way there, where that way
        # enters the last few steps, and whether a foreign value lies on it.
        self._far, self._next, self._enters = (array("i", bytes(4 * size)) for _ in range(3))
        self._foreign = bytearray(size)
        self._nearest: dict[int, tuple[int, int, int]] = {}  # bit -> distance, value, the next one on the way
        self._queue: deque[int] = deque()
        if loss < values.roots:
            self._arrive(loss, 1, loss)
            return
        self._far[-1], self._enters[-1] = 1, loss
        self._foreign[-1] = bool(values.flags[loss] & FOREIGN)
        self._queue.append(loss)

    def _look(self, index: int) -> None:
        """At one value: what are the next ones?"""
        values, low, far = self._values, self._low, self._far[index - self._low]
        flags = values.flags
        if flags[index] & STARTS:
            self._arrive(index, far, self._next[index - low])
        if not flags[index] & LIVE or values.cuts[index]:
            return
        for parent in values.parents[values.first[index] : values.first[index + 1]]:
            if not flags[parent] & LIVE:
                continue
            if parent < values.roots:
                self._arrive(parent, far + 1, index)
            elif not self._far[parent - low]:
                self._step(parent - low, far + 1, index)
                self._queue.append(parent)

    def _step(self, at: int, far: int, following: int) -> None:
        before = following - self._low
        self._far[at], self._next[at] = far, following
        self._enters[at] = at + self._low if far <= ENDS else self._enters[before]
        self._foreign[at] = self._foreign[before] or bool(self._values.flags[at + self._low] & FOREIGN)

    def _arrive(self, index: int, far: int, following: int) -> None:
        bits = self._values.starts[index]
        while bits:
            bit = bits & -bits
            bits ^= bit
            if bit not in self._nearest or far < self._nearest[bit][0]:
                self._nearest[bit] = far, index, following

    def to(self, bit: int) -> tuple[str, ...] | None:
        while self._queue and bit not in self._nearest:
            self._look(self._queue.popleft())
        if bit not in self._nearest:
            return ()
        far, index, following = self._nearest[bit]
        if index == self._loss:
            return (self._values.text(index),)
        if self._foreign[following - self._low]:
            return None
        path = [index, *self._steps(following, self._loss, far if far <= LONG_PATH else ENDS - 1)]
        told = [self._values.text(value) for value in path]
        if far > LONG_PATH:
            told.append(f"... {far - 2 * ENDS} more ...")
            enters = self._enters[following - self._low]
            told += [self._values.text(value) for value in self._steps(enters, self._loss, ENDS)]
        return tuple(told[::-1])

    def _steps(self, index: int, end: int, most: int) -> Iterator[int]:
        for _ in range(most):
            yield index
            if index == end:
                return
            index = self._next[index - self._low]


@dataclass(frozen=True)
class Value:
    """One result in the value graph, to look at."""

    of: Values
    index: int

    @property
    def seq(self) -> int:
        """Creation order; parents always have a smaller one."""
        return self.index

    @property
    def op(self) -> str:
        return self.of.op(self.index)

    @property
    def parents(self) -> list[Value]:
        first = self.of.first
        return [Value(self.of, parent) for parent in self.of.parents[first[self.index] : first[self.index + 1]]]

    @property
    def module(self) -> str:
        """The innermost module that ran, as a dotted name."""
        return self.of.module(self.index)

    @property
    def cut(self) -> str:
        """The kind of cut made here, or ""."""
        return self.of.kinds[self.of.cuts[self.index]]

    @property
    def mode(self) -> str:
        """``no_grad`` or ``inference_mode`` if it was computed there, or ""."""
        return self.of.kinds[self.of.modes[self.index]]

    def site(self) -> CutSite:
        return self.of.site(self.index)


def ancestors(*values: Value) -> list[Value]:
    """The values and all that they were computed from, oldest first."""
    seen, stack = set(values), list(values)
    while stack:
        for parent in stack.pop().parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda v: v.seq)


def leaves_graphless(order: Iterable[Value], end: Value) -> set[Value]:
    """The values made under no_grad or inference_mode that something outside of it used."""
    exits = {p for v in order if not v.mode for p in v.parents if p.mode}
    return exits | ({end} if end.mode else set())
