"""Where gradient flows, in one graph of all recorded spans, and what each possible edit would close there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from stopgrad.flow.flows import Flows
from stopgrad.flow.separate import reached
from stopgrad.flow.values import ESCAPES, LIVE
from stopgrad.propose.probe import Key
from stopgrad.propose.record import Recorded

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


class Flow(Flows):
    """The graph, from losses to parts, and how each vertex came about.

    Args:
        spans: what was recorded.
        opened: stops that are taken to be removed.
    """

    def __init__(self, spans: Sequence[Recorded], opened: frozenset[Key] = frozenset()) -> None:
        super().__init__([], {}, {})
        self.spans, self._opened = spans, opened
        self.origin: list[tuple[int, int]] = []  # of each vertex: its span and value; of a use, that of who uses it
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
                live[value] = True
                continue
            needs = stops.get(value)
            if needs is None:
                is_fresh = any(fresh[p] for p in parents)
                live[value] = bool(values.flags[value] & LIVE) or is_fresh
            else:
                live[value] = is_fresh = needs <= self._opened and any(live[p] for p in parents)
            fresh[value] = is_fresh
            following = [parent for parent in dict.fromkeys(parents) if live[value] and live[parent]]
            self.after[at[value]] = [self._use(number, value, p, at) if p in mine else at[p] for p in following]
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
            key = next((span.frozen[parent] for parent in parents if parent in span.frozen), OTHER)
        elif mode:
            key = next((key for key, first, last in blocks if first <= value < last), OTHER)
        else:
            key = span.notes.stops.get(value, OTHER)
        found[value] = frozenset([key or OTHER])
    return found
