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


class Span:
    """Follows the values from here on, until it is closed.

    Args:
        parts: the parameters of each part.

    Attributes:
        evidence: by loss, once it is closed; its parameters by ``id``.
        changed: how and where a value that a backward needed was written to behind autograd's back.
    """

    def __init__(self, parts: dict[str, list[Tensor]]) -> None:
        self.parts = parts
        self.evidence: dict[str, Evidence] = {}
        self.changed: list[tuple[str, Line]] = []
        self._reports: list[tuple[str, Tensor, dict[int, list[Tensor]]]] = []
        self._current: dict[int, list[Tensor]] | None = None
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
            if self._current is not None:
                self._current.setdefault(key, []).append(measure.norm(grad))

        return note

    def begin(self, name: str, loss: Tensor) -> list[Any]:
        """A backward begins; the nodes that it goes through."""
        with without_overrides():
            nodes = nodes_of(loss)
            self.changed += [change for change in self._saved.changed(nodes) if change not in self.changed]
        try:
            self.audit.admit(name, loss)
        except ValueError:  # no scalar, no graph, or the same graph once more: the script's own backward will tell
            return nodes
        self._current = {}
        self._reports.append((name, loss, self._current))
        return nodes

    def end(self, finished: bool = True) -> None:
        """The backward ended; where it raised, what it has reached says nothing."""
        if self._current is not None and not finished:
            self._reports.pop()
        self._current = None

    def close(self) -> FlowMatrix | None:
        """Stop; the matrix of what was measured, or None."""
        self.end(finished=False)
        for handle in self._handles:
            handle.remove()
        try:
            for name, loss, norms in self._reports:
                totals = {key: float(torch.stack(got).norm()) for key, got in norms.items()}
                self.audit.record(name, loss, totals, {})
            matrix = self.audit.matrix() if self._reports else None
            self._read()
            return matrix
        finally:
            self.audit.__exit__()
            self._saved.off()

    def _read(self) -> None:
        places = list(dict.fromkeys(id(t) for part in self.parts.values() for t in part))
        bits = {name: 1 << i for i, name in enumerate(self.audit.parts)}
        frozen = sum(bit for name, bit in bits.items() if not any(t.requires_grad for t in self.parts[name]))
        for value, name in self.audit.loss_values.items():
            found = evidence(value.of, value.index, bits, frozen)
            found.stopped = {places[place]: cut for place, cut in found.stopped.items()}
            found.used = {places[place] for place in found.used}
            self.evidence.setdefault(name, Evidence()).merge(found)
