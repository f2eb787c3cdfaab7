"""The flow matrix: one cell for each loss and each part of a model, with its state, strength and reasons."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from stopgrad.cuts.strategies import nearest
from stopgrad.flow.advice import Facts, zeros
from stopgrad.flow.fold import matrix_text
from stopgrad.flow.values import CutSite

# The five states. Of several reports of one loss, the first in this order counts.
STATES = ("open", "zero", "opaque", "blocked", "independent")


@dataclass(frozen=True)
class Cell:
    """What one loss does to one part.

    Attributes:
        state: ``open`` (gradient arrives), ``zero`` (it arrives and is numerically zero), ``blocked`` (the loss
            depends on the part, but the gradient was stopped), ``independent`` (the loss does not depend on it, or
            only through Python numbers or NumPy), ``opaque`` (this graph cannot tell).
        norm: L2 norm of the gradient that arrived, over the whole part. A loss that is reported several times keeps
            the largest. 0 of an ``open`` one: not measured, as of a term of a loss.
        cuts: every cut between the loss and the part, nearest to the loss first; for ``independent``, the lines where
            the value left PyTorch.
        path: the operations from the loss to the nearest parameter reached, in words.
        note: why the cell is ``opaque``; or, for ``zero``, what may have made it so.
        died: for ``zero``, the operations with their lines that got a gradient and passed none on to the part, nearest
            to the loss first; () where that was not measured (a training audited by its own backward), or where the
            gradient of several ways cancels.
        zeros: for ``zero``, parameters that are all zeros, if every way from the loss to the part is multiplied by one:
            LoRA's B, of its A.
    """

    state: str
    norm: float = 0.0
    cuts: tuple[CutSite, ...] = ()
    path: tuple[str, ...] = ()
    note: str = ""
    died: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()

    def merge(self, other: Cell) -> Cell:
        """One cell for two reports of the same loss."""
        first, second = sorted((self, other), key=lambda cell: STATES.index(cell.state))
        cuts = tuple(dict.fromkeys(first.cuts + second.cuts))
        norm = self.norm if math.isnan(self.norm) else max(self.norm, other.norm)
        return Cell(first.state, norm, cuts, first.path, first.note, first.died, first.zeros)

    def __str__(self) -> str:
        return f"{self.state} {self.norm:.1e}" if self.state == "open" and self.norm else self.state


INDEPENDENT = Cell("independent")


class FlowMatrix(Mapping[tuple[str, str], Cell]):
    """``matrix["d_loss", "generator"]`` is a :class:`Cell`. ``print(matrix)`` shows the table and every cut.

    A module that is told in several parts is a part too: ``matrix["loss", "net"]`` if the parts lie in ``net``.

    Raises:
        KeyError: a loss that was not reported or a part that does not exist; with the choices.
    """

    def __init__(
        self,
        parts: Sequence[str],
        cells: Mapping[tuple[str, str], Cell],
        losses: Sequence[str] | None = None,
        facts: Facts | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self.losses = tuple(dict.fromkeys(loss for loss, _ in cells) if losses is None else losses)
        self.facts = facts or Facts()
        self._known = {*self.losses}, {*self.parts}
        self._cells = {
            key: cell for key, cell in cells.items() if key[0] in self._known[0] and key[1] in self._known[1]
        }

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        loss, part = key
        if loss in self._known[0] and part in self._known[1]:
            return self._cells.get(key, INDEPENDENT)
        if loss in self._known[0] and part in self.facts.unions:
            cells = [self[loss, each] for each in self.facts.unions[part]]
            return replace(reduce(Cell.merge, cells), norm=math.hypot(*(cell.norm for cell in cells)))
        known, name, kind = (self.parts, part, "part") if loss in self.losses else (self.losses, loss, "loss")
        raise KeyError(f"no {kind} {name!r}; there is {', '.join(known) or 'none'}{nearest(name, known)}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((loss, part) for loss in self.losses for part in self.parts)

    def __len__(self) -> int:
        return len(self.losses) * len(self.parts)

    def updated(self, newer: FlowMatrix) -> FlowMatrix:
        """This matrix with the losses of a newer one beside its own, or in their place."""
        parts, losses = (
            list(dict.fromkeys(a + b)) for a, b in ((self.parts, newer.parts), (self.losses, newer.losses))
        )
        kept = {key: cell for key, cell in self._cells.items() if key[0] not in newer.losses}
        return FlowMatrix(parts, kept | newer._cells, losses, newer.facts)

    def share(self, loss: str, part: str) -> float:
        """The loss's norm at a part over the sum of all losses' norms there, in [0, 1]; 0 where nothing arrives."""
        total = sum(self[other, part].norm for other in self.losses)
        return self[loss, part].norm / total if total else 0.0

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Plain numbers and strings, for JSON."""
        return {
            loss: {
                part: {
                    "state": (cell := self[loss, part]).state,
                    "norm": cell.norm,
                    "cuts": [str(c) for c in cell.cuts],
                    **({"died": list(cell.died)} if cell.died else {}),
                }
                for part in self.parts
            }
            for loss in self.losses
        }

    def told(self) -> dict[tuple[str, str], Cell]:
        """The cells that say more than ``independent``, in order."""
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self.losses, self.parts))
        cells = [(key, cell) for key, cell in self._cells.items() if cell != INDEPENDENT]
        return dict(sorted(cells, key=lambda item: (rows[item[0][0]], columns[item[0][1]])))

    def counts(self) -> dict[str, int]:
        """How many cells are in each state."""
        told = self.told()
        counts: dict[str, int] = dict.fromkeys(STATES, 0)
        for cell in told.values():
            counts[cell.state] += 1
        counts["independent"] += len(self) - len(told)
        return counts

    def reasons_of(self) -> list[tuple[tuple[str, str], str]]:
        """Loss and part, and the cut or escape that keeps the one from the other, in words."""
        found, words = [], {}
        for key, cell in self.told().items():
            if cell.state in ("blocked", "independent"):
                if (cell.state, cell.cuts) not in words:
                    verb = "stopped by" if cell.state == "blocked" else "only through"
                    words[cell.state, cell.cuts] = [f"{verb} {cut}" for cut in cell.cuts]
                found += [(key, reason) for reason in words[cell.state, cell.cuts]]
            elif cell.state == "opaque":
                found.append((key, cell.note))
            elif cell.zeros:
                found.append((key, f"zero: multiplied by {zeros(cell.zeros)}"))
            elif cell.died:
                found.append((key, f"became zero at {', '.join(cell.died)}"))
            elif cell.note:
                found.append((key, f"zero; {cell.note}"))
        return found

    def reasons(self) -> list[str]:
        """One line for each cut, or escape, that keeps a loss from a part; what hides many parts is told once."""
        found, hidden, lines = self.reasons_of(), {}, []
        for key, reason in found:
            if self[key].state == "opaque":
                hidden.setdefault(reason, []).append(key)
        for (loss, part), reason in found:
            keys = hidden.get(reason, [(loss, part)])
            more = f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""
            if (loss, part) == keys[0]:
                lines.append(f"{loss} -> {part}{more}: {reason}")
        return lines

    def text(self, broken: Collection[tuple[str, str]] = ()) -> str:
        """The matrix as a table, followed by the reasons. Where a screen cannot hold it, what is alike is told once.

        Args:
            broken: losses and parts that must not be folded away, such as those of a contract's violations.
        """
        return matrix_text(self, broken)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """For a notebook."""
        from stopgrad.flow.page import matrix_html

        return matrix_html(self)

    def __repr__(self) -> str:
        return f"<FlowMatrix {len(self.losses)} losses x {len(self.parts)} parts>"
