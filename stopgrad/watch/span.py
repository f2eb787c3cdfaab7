"""A cycle that is measured: its values are followed, and norms are taken in the script's own backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from stopgrad.cuts.torch_internals import without_overrides
from stopgrad.flow import measure
from stopgrad.flow.audit import audit
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.watch.evidence import Evidence, evidence
from stopgrad.watch.graphs import Line, Saved, nodes_of

MOST_LOSSES, MOST_VALUES = 128, 200_000  # of a span: a script that never clears a gradient has one endless cycle


class Span:
    """Follows the values from here on, until it is closed. It keeps no tensor of the script's alive.

    Args:
        parts: the parameters of each part.

    Attributes:
        evidence: by loss, its parameters by ``id``.
        changed: how and where a value that a backward needed was written to behind autograd's back.
    """

    def __init__(self, parts: dict[str, list[Tensor]]) -> None:
        self.parts = parts
        self.evidence: dict[str, Evidence] = {}
        self.changed: list[tuple[str, Line]] = []
        self._losses = 0
        self._norms: dict[int, list[Tensor]] | None = None
        self._name = ""
        self._saved = Saved()
        self._saved.__enter__()
        self.audit = audit(parts)
        self.audit.__enter__()
        self._handles: list[RemovableHandle] = []
        for tensor in {id(t): t for part in parts.values() for t in part}.values():
            if tensor.requires_grad and tensor.is_leaf:
                self._handles.append(tensor.register_hook(self._arrived(id(tensor))))

    def _arrived(self, key: int) -> Any:
        def note(grad: Tensor) -> None:
            if self._norms is not None:
                self._norms.setdefault(key, []).append(measure.norm(grad))

        return note

    @property
    def is_full(self) -> bool:
        return self._losses >= MOST_LOSSES or self.audit.size > MOST_VALUES

    def begin(self, name: str, loss: Tensor) -> list[Any]:
        """A backward begins; the nodes that it goes through."""
        with without_overrides():
            nodes = nodes_of(loss)
            self.changed += [change for change in self._saved.changed(nodes) if change not in self.changed]
        try:
            self.audit.admit(name, loss)
        except ValueError:  # no scalar, no graph, or the same graph once more: the script's own backward will tell
            return nodes
        self._name, self._norms = name, {}
        return nodes

    def end(self, loss: Tensor, finished: bool) -> None:
        """The backward ended; where it raised, what it has reached says nothing."""
        norms, self._norms = self._norms, None
        if norms is None or not finished:
            return
        self._losses += 1
        with without_overrides():
            totals = {key: float(torch.stack(got).norm()) for key, got in norms.items()}
        try:
            self.audit.record(self._name, loss, totals, {})
        except ValueError:  # nothing that was followed lies behind it
            return
        self._read()

    def _read(self) -> None:
        """What the values of the newest loss tell."""
        value, name = next(reversed(self.audit.loss_values.items()))
        places = list(dict.fromkeys(id(t) for part in self.parts.values() for t in part))
        bits = {part: 1 << i for i, part in enumerate(self.audit.parts)}
        frozen = sum(bit for part, bit in bits.items() if not any(t.requires_grad for t in self.parts[part]))
        found = evidence(value.of, value.index, bits, frozen)
        found.stopped = {places[place]: cut for place, cut in found.stopped.items()}
        found.used = {places[place] for place in found.used}
        self.evidence.setdefault(name, Evidence()).merge(found)

    def close(self) -> FlowMatrix | None:
        """Stop; the matrix of what was measured, or None."""
        for handle in self._handles:
            handle.remove()
        try:
            return self.audit.matrix() if self.audit.loss_values else None
        finally:
            self.audit.__exit__()
            self._saved.off()
