"""Which edits meet the wishes: the smallest sets, in the order in which a reader would want them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from stopgrad.flow.flows import Cell
from stopgrad.flow.separate import Separation
from stopgrad.flow.values import Values
from stopgrad.propose.edits import Edit, Source
from stopgrad.propose.graph import OTHER, Choice, Effect, Flow
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
        apart: cells that are to be closed.
        reach: cells that are to be open.
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
            removed = tuple(self._edit(Choice("remove", key)) for key in sorted(opened))
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
        kept = flow.kept(apart, self._keep, self._record.terms)
        lost = next((cell for cell in self._reach if cell in kept and not kept[cell]), None)
        if lost is not None:
            told = ", ".join(f"{loss} -> {part} is not to be reached" for loss, part in apart)
            told += f", and {lost[0]} -> {lost[1]} is to be: they contradict each other, since it leads nowhere else"
            return Found(why=told)
        forbidden = set().union(*kept.values())
        effects = {choice: effect for choice, effect in flow.effects.items() if self._edit(choice) is not None}
        closes = {choice: frozenset(effect.closes) for choice, effect in effects.items()}
        wishes = [flow.wish(cell) for cell in apart]
        harmless = {choice: closed for choice, closed in closes.items() if not closed & forbidden}
        answer = Separation(flow.after, wishes, harmless).smallest()
        why = "" if answer.sets else self._conflict(flow, apart, kept, answer.left)
        if not answer.sets:  # then one that leaves a way at least to all that must be reached
            answer = Separation(
                flow.after, wishes, closes, [flow.wish(cell) for cell, on in kept.items() if on]
            ).smallest()

        def proposal(chosen: frozenset[Choice]) -> Proposal:
            edits = [edit for choice in chosen if (edit := self._edit(choice)) is not None]
            closed = set().union(*(closes[choice] for choice in chosen))
            weakens = tuple(cell for cell, on in kept.items() if on & closed)
            return Proposal((*removed, *sorted(edits, key=lambda edit: (edit.file, edit.line))), weakens)

        offered = {choice: effects[choice] for chosen in answer.sets for choice in chosen}
        rank = {choice: self._rank(choice, offered) for choice in offered}
        ranked = sorted(answer.sets, key=lambda chosen: sorted(rank[choice] for choice in chosen))
        proposals = sorted(map(proposal, ranked), key=lambda made: len(made.weakens))
        return Found(proposals, answer.proven, answer.complete, why)

    def _edit(self, choice: Choice) -> Edit | None:
        if choice not in self._edits:
            file, _ = choice.key
            if file.startswith("stop."):
                strategy = "none" if choice.kind == "remove" else choice.kind
                each = (source.boundary(file.removeprefix("stop."), strategy) for source in self._sources.values())
                self._edits[choice] = next(filter(None, each), None)
            else:
                source = self._sources.get(file)
                self._edits[choice] = None if source is None else source.edit(choice)
        return self._edits[choice]

    def _rank(self, choice: Choice, effects: Mapping[Choice, Effect]) -> tuple[Any, ...]:
        """What saves most of a forward's graph; else where the loss is assembled, not deep in a function.

        Args:
            effects: of all edits that are in some answer.
        """
        if choice.key[0].startswith("stop."):
            return -1, 0, 0, False, 0, *choice.key, 0
        source, effect = self._sources[choice.key[0]], effects[choice]
        node = source.sites[choice.key[1]].node
        spared = {c: e.spared for c, e in effects.items() if c.kind == "no_grad" and e.calls}
        is_call = isinstance(getattr(node, "value", None), ast.Call | ast.BinOp)
        where = choice.key[0], node.lineno, len(source.spelled(node))
        if choice in spared and is_call and 2 * effect.spared >= max(spared.values()):  # not a small piece of it
            return 0, -effect.spared, effect.depth, False, 0, *where
        plain = isinstance(node, ast.Name) or isinstance(source.parents.get(node), ast.Assign)
        reads = 0 if plain else 2 if isinstance(node, ast.BinOp | ast.UnaryOp) else 1
        return 1, choice.kind == "freeze", effect.depth, choice.kind == "no_grad", reads, *where

    def _conflict(self, flow: Flow, apart: Sequence[Cell], kept: Mapping[Cell, set[int]], way: Sequence[int]) -> str:
        """Which wishes contradict each other, and on which way."""
        if not way:
            return ""
        loss, part = next(
            (
                c
                for c in apart
                if way[0] in flow.losses[c[0]] and (way[-1] in flow.parts[c[1]] or not flow.parts[c[1]].isdisjoint(way))
            ),
            apart[0],
        )
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
        return [key for key in found if key != OTHER and self._edit(Choice("remove", key)) is not None]

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
