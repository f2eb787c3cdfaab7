"""Where gradient flows, in one graph of all recorded spans, and what each possible edit would close there."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from stopgrad.flow.separate import Wish, backwards, reached
from stopgrad.flow.values import ESCAPES, LIVE
from stopgrad.propose.probe import Key
from stopgrad.propose.record import Recorded

Cell = tuple[str, str]  # a loss, and a part
OTHER = ("", -1)  # what stops a gradient there can be removed by no edit of the script


@dataclass(frozen=True)
class Choice:
    """A possible edit: ``detach`` an expression, ``no_grad`` around a statement, ``freeze`` a module during one, or
    ``remove`` a stop.
    """

    kind: str
    key: Key
    module: str = ""


@dataclass
class Effect:
    """What an edit does.

    Attributes:
        closes: vertices through which no gradient flows any more.
        spared: how many operations leave no graph.
        times: how often its place ran.
        legal: it can be undone after the statement: all parameters of a module that is to freeze require grad.
        depth: how many of the script's statements ran around it, the fewest.
        calls: it is around operations that use parameters.
    """

    closes: set[int] = field(default_factory=set)
    spared: int = 0
    times: int = 0
    depth: int = 1000
    calls: bool = False
    legal: bool = True


class Flow:
    """The graph, from losses to parts.

    Args:
        spans: what was recorded.
        opened: stops that are taken to be removed.
    """

    def __init__(self, spans: Sequence[Recorded], opened: frozenset[Key] = frozenset()) -> None:
        self.spans, self._opened = spans, opened
        self.after: list[list[int]] = []
        self.losses: dict[str, set[int]] = {}
        self.parts: dict[str, set[int]] = {}
        self.origin: list[
            tuple[int, int]
        ] = []  # of each vertex: its span, and its value; of a use, that of who uses it
        self.stops: list[dict[int, frozenset[Key]]] = []  # of each span: what stops the gradient at a value
        self._live: list[bytearray] = []
        self._at: list[list[int]] = []
        self._uses: dict[tuple[int, int, int], int] = {}  # span, value, parameter -> the vertex of that use
        for span in spans:
            self._add(span)

    # ---- the graph

    def _add(self, span: Recorded) -> None:
        values, number = span.values, len(self._live)
        stops = _stops(span)
        live, fresh = bytearray(len(values)), bytearray(len(values))  # fresh: it was not before the stops were opened
        mine = {vertex for *_, own, _ in span.notes.modules for vertex in own} | set(range(values.roots))
        at = list(range(len(self.after), len(self.after) + len(values)))
        self.after += [[] for _ in at]
        self.origin += [(number, value) for value in range(len(values))]
        for value in range(len(values)):
            parents = values.parents[values.first[value] : values.first[value + 1]]
            if value < values.roots:
                live[value] = value not in span.frozen or span.frozen[value] in self._opened
                fresh[value] = value in span.frozen and live[value]
                continue
            needs = stops.get(value)
            if needs is None:
                is_fresh = any(fresh[p] for p in parents)
                live[value] = bool(values.flags[value] & LIVE) or is_fresh
            else:
                live[value] = is_fresh = needs <= self._opened and any(live[p] for p in parents)
            fresh[value] = is_fresh
            for parent in dict.fromkeys(parents) if live[value] else ():
                if live[parent]:
                    self.after[at[value]].append(self._use(number, value, parent, at) if parent in mine else at[parent])
        for value, parts in span.starts.items():
            for part in parts:
                self.parts.setdefault(part, set()).add(at[value])
        for name, vertices in span.losses.items():
            self.losses.setdefault(name, set()).update(at[value] for value in vertices)
        self.stops.append(stops)
        self._live.append(live)
        self._at.append(at)

    def _use(self, number: int, value: int, parameter: int, at: Sequence[int]) -> int:
        """A vertex between an operation and a parameter that it uses: what freezing closes."""
        self._uses[number, value, parameter] = len(self.after)
        self.after.append([at[parameter]])
        self.origin.append((number, value))
        return len(self.after) - 1

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

    # ---- what must stay

    def kept(self, barred: Iterable[Cell], keep: Iterable[Cell], terms: Container[str]) -> dict[Cell, set[int]]:
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

    # ---- what edits do

    @cached_property
    def effects(self) -> dict[Choice, Effect]:
        """What each edit closes, of those that close something behind a loss."""
        behind = reached(self.after, [v for starts in self.losses.values() for v in starts])
        found: dict[Choice, Effect] = {}
        for number, span in enumerate(self.spans):
            at, uses = self._at[number], span.notes.uses
            mine = range(span.values.roots)
            for value, (key, depth) in uses.items():
                effect = found.setdefault(Choice("detach", key), Effect())
                effect.closes.add(at[value])
                effect.times += 1
                effect.depth = min(effect.depth, depth)
            for vertex, parts in span.starts.items():
                for part in (part for part in parts if part.startswith("stop.") and at[vertex] in behind):
                    effect = found.setdefault(Choice("detach", (part, 0)), Effect(depth=0))
                    effect.closes.add(at[vertex])
                    effect.times += 1
            for key, first, last, depth in span.notes.ran:
                effect = found.setdefault(Choice("no_grad", key), Effect())
                made = {value for value in range(first, last) if value not in uses and self._live[number][value]}
                effect.closes |= {at[value] for value in made} & behind
                effect.spared += len(made)
                effect.calls |= any(
                    p in mine
                    for v in made
                    for p in span.values.parents[span.values.first[v] : span.values.first[v + 1]]
                )
                effect.times += 1
                effect.depth = min(effect.depth, depth)
            for key, first, last, depth, module, own, whole in span.notes.modules:
                effect = found.setdefault(Choice("freeze", key, module), Effect())
                closes = {v for value in range(first, last) for p in own if (v := self._uses.get((number, value, p)))}
                effect.closes |= closes & behind
                effect.legal &= whole
                effect.times += 1
                effect.depth = min(effect.depth, depth)
        found = {choice: effect for choice, effect in found.items() if effect.closes & behind and effect.legal}
        frozen: dict[tuple[Key, frozenset[int]], list[Choice]] = {}
        for choice in found:
            if choice.kind == "freeze":
                frozen.setdefault((choice.key, frozenset(found[choice].closes)), []).append(choice)
        for alike in frozen.values():  # other names of one module, and what holds it
            for choice in sorted(alike, key=lambda choice: choice.module == "self")[1:]:
                del found[choice]
        return found


def _stops(span: Recorded) -> dict[int, frozenset[Key]]:
    """What stops the gradient at a value: the innermost block without gradients, an expression, or something else."""
    values, found = span.values, {}
    blocks = sorted(span.notes.blocks, key=lambda block: block[2] - block[1])
    for value in range(values.roots, len(values)):
        kind, mode = values.kinds[values.cuts[value]], values.kinds[values.modes[value]]
        crosses = values.op(value).startswith("stop.") and "@" not in values.op(value)
        if crosses and not values.flags[value] & LIVE:
            found[value] = frozenset([(values.op(value), 0)])
            continue
        if not kind and (not mode or values.flags[value] & LIVE):
            continue
        key: Key | None = OTHER
        if kind in ESCAPES or kind == "no_derivative":
            pass
        elif (boundary := values.site(value).boundary) is not None and (kind or mode) != "requires_grad":
            key = f"stop.{boundary}", 0
        elif kind == "requires_grad":
            parents = values.parents[values.first[value] : values.first[value + 1]]
            if boundary is not None and "@" in boundary:
                continue  # a value that is a part
            key = next((span.frozen[p] for p in parents if p in span.frozen), OTHER)
        elif mode:
            key = next((key for key, first, last in blocks if first <= value < last), OTHER)
        else:
            key = span.notes.stops.get(value, OTHER)
        found[value] = frozenset([key or OTHER])
    return found
