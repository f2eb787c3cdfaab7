"""Which edits meet the wishes: the smallest sets, in the order in which a reader would want them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from stopgrad.flow.separate import Separation
from stopgrad.flow.values import Values
from stopgrad.propose.edits import Edit, Source
from stopgrad.propose.graph import OTHER, Cell, Choice, Effect, Flow
from stopgrad.propose.probe import Key
from stopgrad.propose.record import Record

_MOST_STOPS = 24  # among which sets to remove are looked for


@dataclass(frozen=True)
class Proposal:
    """A set of edits, and which cells it weakens: their gradient arrives still, by fewer ways."""

    edits: tuple[Edit, ...]
    weakens: tuple[Cell, ...] = ()


@dataclass
class Found:
    """The smallest sets, best first.

    Attributes:
        proven: no smaller set does it; else none was found.
        complete: no other set of this size does it.
        why: where there is none: in words.
    """

    proposals: list[Proposal] = field(default_factory=list)
    proven: bool = True
    complete: bool = True
    why: str = ""


class Question:
    """What is to be found, on what was recorded.

    Args:
        apart: cells that are open and are to be closed.
        reach: cells that are closed and are to be opened.
        keep: cells that are open and are to stay so.
    """

    def __init__(
        self,
        record: Record,
        sources: Mapping[str, Source],
        apart: Sequence[Cell],
        reach: Sequence[Cell],
        keep: Sequence[Cell],
    ) -> None:
        self._record, self._sources = record, sources
        self._apart, self._reach, self._keep = list(apart), list(reach), list(keep)
        self._flow = Flow(record.spans)
        self._edits: dict[Choice, Edit | None] = {}

    def answer(self) -> Found:
        """The smallest sets of edits."""
        best: Found | None = None
        openings = self._openings()
        if not openings:
            return Found(why=self._unreachable())
        for opened in openings:
            flow = Flow(self._record.spans, frozenset(opened)) if opened else self._flow
            removed = tuple(self._removal(key) for key in sorted(opened))
            found = self._closings(flow, tuple(edit for edit in removed if edit is not None))
            size = len(found.proposals[0].edits) if found.proposals else 0
            if best is None or (found.proposals and (not best.proposals or size < len(best.proposals[0].edits))):
                best = found
            elif found.proposals and size == len(best.proposals[0].edits):
                best.proposals += found.proposals
        assert best is not None
        return best

    # ---- what is to be closed

    def _closings(self, flow: Flow, removed: tuple[Edit, ...]) -> Found:
        apart = [cell for cell in self._apart if flow.reaches(*cell)]
        if not apart:
            return Found([Proposal(removed)])
        keep = [c for c in self._keep if c[0] in flow.losses and c[1] in flow.parts]
        kept = flow.kept(apart, keep, self._record.terms)
        forbidden = set().union(*kept.values()) if kept else set()
        effects = {c: e for c, e in flow.effects.items() if self._edit(c) is not None}
        wishes = [flow.wish(cell) for cell in apart]
        pure = {choice: frozenset(e.closes) for choice, e in effects.items() if not e.closes & forbidden}
        answer = Separation(flow.after, wishes, pure).smallest()
        weakens: dict[frozenset[Choice], tuple[Cell, ...]] = {}
        why = self._conflict(flow, apart, kept, answer.left)
        if not answer.sets:
            joined = [flow.wish(cell) for cell, on in kept.items() if on]
            answer = Separation(
                flow.after, wishes, {c: frozenset(e.closes) for c, e in effects.items()}, joined
            ).smallest()
            for chosen in answer.sets:
                closes = set().union(*(effects[choice].closes for choice in chosen))
                weakens[chosen] = tuple(cell for cell, on in kept.items() if on & closes)
        ranked = sorted(
            answer.sets, key=lambda s: (len(weakens.get(s, ())), sorted(self._rank(c, effects[c]) for c in s))
        )
        proposals = [
            Proposal(
                (*removed, *sorted((e for c in chosen if (e := self._edit(c))), key=lambda e: (e.file, e.line))),
                weakens.get(chosen, ()),
            )
            for chosen in ranked
        ]
        return Found(proposals, answer.proven, answer.complete, "" if proposals else why)

    def _edit(self, choice: Choice) -> Edit | None:
        source = self._sources.get(choice.key[0])
        if choice not in self._edits:
            self._edits[choice] = None if source is None else source.edit(choice)
        return self._edits[choice]

    def _rank(self, choice: Choice, effect: Effect) -> tuple[object, ...]:
        """Where a loss is assembled rather than deep in a function; what saves a graph; what reads best."""
        source = self._sources[choice.key[0]]
        node = source.sites[choice.key[1]].node
        is_call = effect.calls and isinstance(getattr(node, "value", None), ast.Call | ast.BinOp)
        kind = {"no_grad": 0 if is_call else 2, "detach": 1, "freeze": 3}[choice.kind]
        plain = isinstance(node, ast.Name) or isinstance(source.parents.get(node), ast.Assign)
        reads = 0 if plain else 2 if isinstance(node, ast.BinOp | ast.UnaryOp) else 1
        return effect.depth, kind, -effect.spared, reads, choice.key[0], node.lineno, len(source.spelled(node))

    def _conflict(self, flow: Flow, apart: Sequence[Cell], kept: Mapping[Cell, set[int]], way: Sequence[int]) -> str:
        """Which wishes contradict each other, and on which way."""
        if not way:
            return ""
        loss, part = next((c for c in apart if way[0] in flow.losses[c[0]] and (way[-1] in flow.parts[c[1]] or not flow.parts[c[1]].isdisjoint(way))), apart[0])
        cuttable = set().union(*(effect.closes for effect in flow.effects.values())) & set(way)
        shared = max(kept, key=lambda cell: (len(kept[cell] & cuttable), cell in self._reach), default=None)
        told = " <- ".join(self._told(flow, way))
        if not cuttable or shared is None or not kept[shared] & cuttable:
            return f"{loss} -> {part} cannot be stopped: no value of the script's own lies on its way\n  {told}"
        must = "is to be reached" if shared in self._reach else "is open and must stay so"
        first = f"{loss} -> {part} is not to be reached, and {shared[0]} -> {shared[1]} {must}"
        return f"{first}: they contradict each other, since every value on this way carries both\n  {told}"

    def _told(self, flow: Flow, way: Iterable[int]) -> list[str]:
        told: dict[str, None] = {}
        for vertex in way:
            number, value = flow.origin[vertex]
            values = flow.spans[number].values
            if values.op(value) != "alias":
                told[values.text(value)] = None
        lines = list(told)
        return lines if len(lines) <= 9 else [*lines[:4], f"... {len(lines) - 8} more ...", *lines[-4:]]

    # ---- what is to be opened

    def _openings(self) -> list[frozenset[Key]]:
        """The smallest sets of stops without which all wished cells are reached; the empty one where they are."""
        wanted = [cell for cell in self._reach if not self._flow.reaches(*cell)]
        if not wanted:
            return [frozenset()]
        stops = self._stops_between(wanted)
        for size in range(1, min(len(stops), 4) + 1):
            found = []
            for chosen in combinations(stops, size) if len(stops) <= _MOST_STOPS or size == 1 else ():
                flow = Flow(self._record.spans, frozenset(chosen))
                if all(flow.reaches(*cell) for cell in wanted):
                    found.append((len(flow.open_cells()), chosen))
            if found:
                return [frozenset(chosen) for _, chosen in sorted(found)]
        return []

    def _stops_between(self, cells: Iterable[Cell]) -> list[Key]:
        """The stops that can be removed on the ways of the values from losses to parts."""
        found: dict[Key, None] = {}
        for number, span in enumerate(self._record.spans):
            values = span.values
            for loss, part in cells:
                behind = _behind(values, span.losses.get(loss, ()))
                ends = {v for v, parts in span.starts.items() if part in parts}
                leads = set(ends)
                for value in sorted(behind):
                    each = values.parents[values.first[value] : values.first[value + 1]]
                    if any(parent in leads for parent in each):
                        leads.add(value)
                        found.update(dict.fromkeys(self._flow.stops[number].get(value, ())))
                for root in ends & span.frozen.keys():
                    found[span.frozen[root] or OTHER] = None
        return [key for key in found if key != OTHER and self._removal(key) is not None]

    def _removal(self, key: Key) -> Edit | None:
        file, _ = key
        if file.startswith("stop."):
            name = file.removeprefix("stop.")
            return next((e for source in self._sources.values() if (e := source.open_boundary(name))), None)
        return self._edit(Choice("remove", key))

    def _unreachable(self) -> str:
        """Why no removal of a stop opens what is to be reached."""
        told = []
        for loss, part in self._reach:
            cell = self._record.matrix[loss, part] if self._record.matrix is not None else None
            if cell is None or cell.state == "independent":
                told.append(f"{loss} -> {part} cannot be reached: the loss does not depend on it")
            elif cell.state == "blocked":
                cuts = "; ".join(map(str, cell.cuts)) or "no operation seen"
                told.append(f"{loss} -> {part} cannot be reached by removing a line of the script's: stopped by {cuts}")
        return "\n".join(told)


def _behind(values: Values, losses: Iterable[int]) -> set[int]:
    found, stack = set(losses), list(losses)
    while stack:
        value = stack.pop()
        for parent in values.parents[values.first[value] : values.first[value + 1]]:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found
