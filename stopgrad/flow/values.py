"""The value graph of an audited step: what each tensor was computed from, kept across every cut."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

ESCAPES = ("item", "tolist", "numpy")  # ways out of PyTorch: a Python number or a NumPy array


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

    def __str__(self) -> str:
        shown = self.op and self.boundary is None and self.kind in ("no_derivative", "function", "requires_grad")
        op = f" ({self.op})" if shown else ""
        at = f" at {place(self.file, self.line)}"
        return f"{self.kind}{op}{at}{f' (stop.{self.boundary})' if self.boundary else ''}"


def place(file: str, line: int) -> str:
    """``file:line``, relative to the working directory where the file lies below it."""
    if not file:
        return "an unknown line"
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if relative.startswith('..') else relative}:{line}"


@dataclass(eq=False, slots=True)
class Value:
    """One result in the value graph. It holds no tensor.

    Attributes:
        seq: creation order; parents always have a smaller one.
        parts: bits of the parts (parameter groups, boundaries) that start here.
        cut: the kind of cut made here, or "".
        mode: ``no_grad`` or ``inference_mode`` if it was computed there, or "". Such a value is a cut only where it
            leaves that mode.
        live: the result required grad.
        foreign: it was made before the audit began.
        module: the innermost module that ran, as a dotted name.
    """

    seq: int
    op: str
    parents: tuple[Value, ...] = ()
    file: str = ""
    line: int = 0
    parts: int = 0
    cut: str = ""
    mode: str = ""
    boundary: str | None = None
    live: bool = False
    module: str = ""
    foreign: bool = False

    def site(self) -> CutSite:
        return CutSite(self.cut or self.mode or "function", self.file, self.line, self.boundary, self.op)


@dataclass
class Trace:
    """What one loss was computed from.

    ``connected`` holds the bits of the parts that its value depends on; ``foreign`` tells that some of it was made
    before the audit began.
    """

    connected: int = 0
    foreign: bool = False
    cuts: list[tuple[int, CutSite]] = field(default_factory=list)
    escapes: list[tuple[int, CutSite]] = field(default_factory=list)

    def cuts_of(self, bit: int) -> tuple[CutSite, ...]:
        """Every cut between the loss and a part, nearest to the loss first."""
        return tuple(dict.fromkeys(site for mask, site in self.cuts if mask & bit))

    def escapes_of(self, bit: int) -> tuple[CutSite, ...]:
        return tuple(dict.fromkeys(site for mask, site in self.escapes if mask & bit))


def ancestors(*values: Value) -> list[Value]:
    """The values and all that they were computed from, oldest first."""
    seen, stack = set(values), list(values)
    while stack:
        for parent in stack.pop().parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda v: v.seq)


def leaves_graphless(order: list[Value], end: Value) -> set[Value]:
    """The values made under no_grad or inference_mode that something outside of it used."""
    exits = {p for v in order for p in v.parents if p.mode and not v.mode}
    return exits | ({end} if end.mode else set())


def trace(loss: Value) -> Trace:
    """Follow ``loss`` back to the parts, in time linear in the operations of the step."""
    order = ancestors(loss)
    exits = leaves_graphless(order, loss)
    result, reach, functions = Trace(), {}, []
    for value in order:
        mask = value.parts
        for parent in value.parents:
            mask |= reach[parent]
        if value.cut in ESCAPES:
            result.escapes.append((mask, value.site()))
            mask = 0
        elif value.cut or value in exits:
            result.cuts.append((mask, value.site()))
        elif value.op.endswith("Backward"):
            functions.append((mask, value.site()))
        reach[value] = mask
    result.connected = reach[loss]
    result.foreign = any(value.foreign for value in order)
    cut = 0
    for mask, _ in result.cuts:
        cut |= mask
    # Only where no cut is known can a custom Function be what stopped the gradient.
    result.cuts += [(mask & ~cut, site) for mask, site in functions]
    result.cuts.reverse()
    return result


def live_path(loss: Value, bit: int) -> list[Value]:
    """The shortest path of operations from the loss to a part along which gradient flows; [] if there is none."""
    came: dict[Value, Value | None] = {loss: None}
    queue = deque([loss])
    while queue:
        value = queue.popleft()
        if value.parts & bit:
            return list(_back(value, came))[::-1]
        for parent in value.parents if value.live and not value.cut else ():
            if parent not in came and parent.live:
                came[parent] = value
                queue.append(parent)
    return []


def _back(value: Value | None, came: dict[Value, Value | None]) -> Iterator[Value]:
    while value is not None:
        yield value
        value = came[value]
