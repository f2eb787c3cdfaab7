"""A cycle that is measured: its values are followed, and norms are taken in the script's own backwards."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from stopgrad.cuts.torch_internals import without_overrides
from stopgrad.flow import measure
from stopgrad.flow.audit import audit
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.values import Trace
from stopgrad.watch.evidence import Evidence, evidence
from stopgrad.watch.graphs import Line, Saved, nodes_of
from stopgrad.watch.names import scalars, standing_values

MOST_LOSSES, MOST_VALUES = 128, 200_000  # of a span: a script that never clears a gradient has one endless cycle


class Span:
    """Follows the values from here on, until it is closed. It keeps no tensor of the script's alive.

    Args:
        parts: the parameters of each part.
        with_terms: take the norms of a loss's terms too, by a backward each.

    Attributes:
        evidence: by loss, its parameters by ``id``.
        met: of the newest loss, the names of those that an operation took together with another live value.
        changed: how and where a value that a backward needed was written to behind autograd's back.
        terms: once it is closed, the loss of each term that has a row of its own in the matrix.
    """

    def __init__(self, parts: dict[str, list[Tensor]], with_terms: bool = False) -> None:
        self.parts, self._with = parts, with_terms
        self.evidence: dict[str, Evidence] = {}
        self.changed: list[tuple[str, Line]] = []
        self.terms: dict[str, str] = {}
        self.met: set[str] = set()
        self._losses = 0
        self._norms: dict[int, list[Tensor]] | None = None
        self._name = ""
        self.still: dict[int, str] = {}  # of the newest loss: values that stand still by the name of their variable
        self._norms_of: dict[int, dict[int, float]] = {}  # of these values, by id of the parameter
        self._called: dict[int, str] = {}  # the values of the script's scalars, by the names of their variables
        self._terms: dict[str, dict[str, dict[str, Cell]]] = {}  # loss -> term -> part
        self.terms_at: dict[str, set[int]] = {}  # the values of each term
        self._crossings: dict[str, list[Tensor]] = {}  # boundary -> norms, in a backward
        self._handles: dict[int, RemovableHandle] = {}  # by id of a parameter, which the audit keeps alive
        self._saved, self.audit = Saved(), audit(parts)
        with ExitStack() as stack:
            self._saved.__enter__()
            stack.callback(self._saved.off)
            stack.push(self.audit.__enter__())
            self.audit.on_crossing(self._crossed)
            stack.callback(self._unhook)
            self._stack = stack.pop_all()  # where one cannot be entered, those before it are left again

    def _hook(self) -> None:
        """Hook what requires grad by now, and was not hooked."""
        for tensors in self.parts.values():
            for tensor in tensors:
                if id(tensor) not in self._handles and tensor.requires_grad and tensor.is_leaf:
                    self._handles[id(tensor)] = tensor.register_hook(self._arrived(id(tensor)))

    def _arrived(self, key: int) -> Any:
        def note(grad: Tensor) -> None:
            if self._norms is not None:
                self._norms.setdefault(key, []).append(measure.norm(grad))

        return note

    def _crossed(self, boundary: str, tensor: Tensor) -> None:
        def note(grad: Tensor) -> None:
            if self._norms is not None:
                self._crossings.setdefault(boundary, []).append(measure.norm(grad))

        with without_overrides():
            tensor.register_hook(note)

    @property
    def is_full(self) -> bool:
        return self._losses >= MOST_LOSSES or self.audit.size > MOST_VALUES

    def begin(self, name: str, loss: Tensor) -> list[Any]:
        """A backward begins; the nodes that it goes through."""
        self._hook()
        with without_overrides():
            nodes = nodes_of(loss)
            self.changed += [change for change in self._saved.changed(nodes) if change not in self.changed]
        try:
            self.audit.admit(name, loss)
        except ValueError:  # no scalar, no graph, or the same graph once more: the script's own backward will tell
            return nodes
        self._name = name
        self._called.clear()
        self.still = {value: called for called, t, _ in standing_values() if (value := self.audit.value(t)) is not None}
        self._norms_of.clear()
        behind = set(nodes) - {loss.grad_fn}
        for called, tensor in scalars():
            value = self.audit.value(tensor)
            if value is not None:
                self._called[value] = called
                if self._with and tensor.grad_fn in behind and value not in self._norms_of:
                    self._norms_of[value] = self.audit.norms(called, tensor)
        self._norms, self._crossings = {}, {}
        return nodes

    def end(self, loss: Tensor, finished: bool) -> None:
        """The backward ended; where it raised, what it has reached says nothing."""
        norms, self._norms = self._norms, None
        if norms is None or not finished:
            return
        self._losses += 1
        with without_overrides():
            totals = {key: float(torch.stack(got).norm()) for key, got in norms.items()}
            crossings = {name: [float(norm) for norm in got] for name, got in self._crossings.items()}
        try:
            self.audit.record(self._name, loss, totals, crossings)
        except ValueError:  # nothing that was followed lies behind it
            return
        self._read()

    def _read(self) -> None:
        """What the values of the newest loss tell."""
        value, name = next(reversed(self.audit.loss_values.items()))
        places = list(dict.fromkeys(id(t) for part in self.parts.values() for t in part))
        bits = {part: 1 << i for i, part in enumerate(self.audit.parts)}
        frozen = sum(bit for part, bit in bits.items() if not any(t.requires_grad for t in self.parts[part]))
        found, live = evidence(value.of, value.index, bits, frozen, self._called, self.still.keys())
        for term, index in found.terms.items() if len(found.terms) > 1 else ():
            cells = self._terms.setdefault(name, {}).setdefault(term, {})
            self.terms_at.setdefault(term, set()).add(index)
            hangs, trace = value.of.connected[index], Trace(value.of, index)
            for part, bit in bits.items():
                if hangs & bit:
                    norms = [self._norms_of.get(index, {}).get(id(t), 0.0) for t in self.parts[part]]
                    cell = (
                        Cell("open", math.hypot(*norms))
                        if live[index] & bit
                        else Cell("blocked", cuts=trace.cuts_of(bit))
                    )
                    cells[part] = cells[part].merge(cell) if part in cells else cell
        found.stopped = {places[place]: cut for place, cut in found.stopped.items()}
        self.met = {self.still[index] for index in found.met}
        self.evidence.setdefault(name, Evidence()).merge(found)

    def _unhook(self) -> None:
        for handle in self._handles.values():
            handle.remove()

    def off(self) -> None:
        """Stop; nothing where that was done."""
        self._stack.close()

    def close(self) -> FlowMatrix | None:
        """Stop; the matrix of what was measured, or None."""
        with self._stack:
            return self._with_terms(self.audit.matrix()) if self.audit.loss_values else None

    def _with_terms(self, matrix: FlowMatrix) -> FlowMatrix:
        """The matrix with a row for each term below its loss."""
        cells, losses = dict(matrix.told()), []
        for loss in matrix.losses:
            terms = {t: parts for t, parts in self._terms.get(loss, {}).items() if t not in matrix.losses}
            self.terms.update(dict.fromkeys(terms, loss))
            cells.update({(term, part): cell for term, parts in terms.items() for part, cell in parts.items()})
            losses += [loss, *terms]
        return FlowMatrix(matrix.parts, cells, losses, matrix.facts)
