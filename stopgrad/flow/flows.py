"""The ways of gradient from losses to parts: which of them are to go, and which vertices carry what must stay."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cached_property

from stopgrad.flow.separate import Wish, backwards, reached

Cell = tuple[str, str]  # a loss, and a part


class Flows:
    """A graph along which gradient flows.

    Args:
        after: of each vertex those to which it hands gradient.
        losses, parts: the vertices at which each begins. A part may be a value, as what crosses a boundary is.
    """

    def __init__(self, after: list[list[int]], losses: dict[str, set[int]], parts: dict[str, set[int]]) -> None:
        self.after: list[list[int]] = after
        self.losses, self.parts = losses, parts

    @cached_property
    def before(self) -> list[list[int]]:
        return backwards(self.after)

    def reaches(self, loss: str, part: str) -> bool:
        return not reached(self.after, self.losses.get(loss, ())).isdisjoint(self.parts.get(part, ()))

    def open_cells(self) -> set[Cell]:
        """All cells that gradient reaches in the graph."""
        found = {loss: reached(self.after, starts) for loss, starts in self.losses.items()}
        return {(loss, part) for loss in self.losses for part, ends in self.parts.items() if found[loss] & ends}

    def wish(self, cell: Cell) -> Wish:
        """Its ways. To a value that is a part they lead on to a parameter: else it carries no gradient at all."""
        starts, ends = frozenset(self.losses[cell[0]]), frozenset(self.parts[cell[1]])
        return Wish(starts, self._roots, ends) if self._is_value(cell[1]) else Wish(starts, ends)

    def _is_value(self, part: str) -> bool:
        return "@" in part or part.startswith("stop.")

    @cached_property
    def _roots(self) -> frozenset[int]:
        return frozenset(v for part, ends in self.parts.items() if not self._is_value(part) for v in ends)

    def kept(self, barred: Iterable[Cell], keep: Iterable[Cell], terms: Container[str] = ()) -> dict[Cell, set[int]]:
        """The vertices that carry each flow which is to stay, beyond what is barred.

        A way is barred that has a barred one in it: from a loss, or a term of it, to a part, or a value that is one.
        """
        barred = {cell for cell in barred if cell[0] in self.losses and cell[1] in self.parts}
        found: dict[Cell, set[int]] = {}
        behind = {loss: reached(self.after, starts) for loss, starts in self.losses.items()}
        upstream: dict[tuple[str, frozenset[int]], set[int]] = {}
        for loss, part in keep:
            if loss not in self.losses or part not in self.parts:
                continue
            if loss in terms and any(p == part and self.losses[loss] & behind[other] for other, p in barred):
                continue  # of one that may not reach this part
            closed: set[int] = set()
            for other, ends in barred:
                if other == loss or (loss in terms and self.losses[loss] & behind[other]):
                    closed |= self.parts[ends] - self.parts[part]  # a value through which no way may lead
                elif other in terms and (ends == part or self.parts[ends] & reached(self.before, self.parts[part])):
                    closed |= self.losses[other] - self.losses[loss]
            key = loss, frozenset(closed)
            if key not in upstream:
                upstream[key] = reached(self.after, self.losses[loss], closed)
            if not self._is_value(part):
                found[loss, part] = upstream[key] & reached(self.before, self.parts[part], closed)
                continue
            ends = self._roots.difference(*(self.parts[p] for other, p in barred if other == loss))
            behind_it = reached(self.after, upstream[key] & self.parts[part]) & reached(self.before, ends)
            found[loss, part] = behind_it | (upstream[key] & reached(self.before, self.parts[part] & behind_it, closed))
        return found
