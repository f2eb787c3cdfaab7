"""Where everything of a flow picture stands: values go from left to right, losses stand at the right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Record = dict[str, Any]
TWIN = "~"  # ends the id of a boundary's second place
Scale = tuple[float, float]
LANE_GAP, STUB = 3.0, 1.8  # between two arrows of one edge; the width of an arrow that ends at a bar
CHIP, LINE = 17.0, 14.0  # heights: of what a part learns; of a line of small text
_MOST_DECADES = 8
_THIN, _WIDE = 2.0, 10.0  # of an arrow, from the smallest to the largest norm
_COLUMN, _ROW, MARGIN = 58.0, 20.0, 18.0
LEAST = 540.0  # width
# Of a wide face (DejaVu Sans): what fits there fits in others.
_WIDTHS = {0.3: "iljI'|", 0.35: ",.:; /\\f-", 0.4: "rt()[]!", 0.52: 'sz*_?"', 0.85: "wMOQ#+<=>~·", 0.98: "mW@%…→"}
_WIDTH_OF = {sign: width for width, signs in _WIDTHS.items() for sign in signs}


def text_width(text: str, size: float, bold: bool = False) -> float:
    """About how wide a text is in a sans-serif face."""
    each = (_WIDTH_OF.get(sign, 0.71 if sign.isupper() else 0.62) for sign in text)
    return size * sum(each) * (1.12 if bold else 1.0)


def short(text: str, most: int = 30) -> str:
    """A text with its middle left out, if it is long."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def number(norm: float | str | None) -> str:
    """A norm in few signs."""
    if norm is None or isinstance(norm, str):
        return norm or "?"
    if norm == 0 or 0.001 <= norm < 1000:
        return f"{norm:.2g}" if norm < 99.5 else f"{norm:.0f}"
    digit, power = f"{norm:.0e}".split("e")
    return f"{digit}e{int(power)}"


def scale_of(records: Iterable[Record]) -> Scale:
    """The decades from the smallest to the largest norm of some records, two at least."""
    every = [of["norm"] for record in records for edge in record["edges"] for of in edge["losses"].values()]
    logs = [math.log10(norm) for norm in every if isinstance(norm, float | int) and norm > 0]
    high = math.ceil(max(logs, default=0.0))
    low = max(math.floor(min(logs, default=-1.0)), high - _MOST_DECADES)  # below is rounding noise
    return (low, high) if high - low >= 2 else (high - 2, high)


def width_of(norm: float | str | None, scale: Scale) -> float:
    """How wide an arrow is drawn: logarithmic in its norm; of one that was not measured, or is zero, the thinnest."""
    if not isinstance(norm, float | int) or norm <= 0:
        return 1.2 if norm == 0 else STUB if norm is None else _WIDE
    low, high = scale
    share = (math.log10(norm) - low) / (high - low)
    return _THIN + (_WIDE - _THIN) * min(1.0, max(0.0, share))


@dataclass
class Place:
    """A node, or where a long edge passes a column."""

    id: str
    width: float
    height: float
    core: float  # the height of what edges end at
    above: float = 0.0  # from the top to the middle of it
    rank: int = 0
    x: float = 0.0
    y: float = 0.0  # of that middle
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def lanes(edge: Mapping[str, Any], scale: Scale, losses: Sequence[str]) -> list[tuple[str, float, bool]]:
    """The arrows on an edge from top to bottom: loss, width, and whether it is stopped at the edge's beginning."""
    stopped = {loss for cut in edge["cuts"] for loss in cut["losses"]} - edge["losses"].keys()
    found = []
    for loss in losses:
        if loss in edge["losses"]:
            found.append((loss, width_of(edge["losses"][loss]["norm"], scale), False))
        elif loss in stopped:
            found.append((loss, STUB, True))
    return found


def thickness(edge: Mapping[str, Any], scale: Scale, losses: Sequence[str]) -> float:
    each = [max(width, 8.0) for _, width, _ in lanes(edge, scale, losses)]
    return sum(each) + LANE_GAP * (len(each) - 1) if each else 2.0


class Layout:
    """Columns, rows and ways of a record.

    Attributes:
        places: of each node.
        ways: for each edge, the points that it passes between its two ends, from left to right.
        loops: for each part, the boundaries on ways from it to itself, which are drawn above it.
        under: edges that go back, each with the height at which they do.
        size: width and height of all.
    """

    def __init__(self, record: Record, scale: Scale) -> None:
        self.record, self.scale = record, scale
        record = self._unlooped(record)
        self.nodes = {node["id"]: node for node in record["nodes"]}
        self.edges = {(e["from"], e["to"]): e for e in record["edges"]}
        self.loops = self._loops()
        inside = {stop for stops in self.loops.values() for stop in stops}
        self.places: dict[str, Place] = {}
        for id, node in self.nodes.items():
            if id not in inside:
                self.places[id] = self._sized(node)
        self.ways: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self.under: dict[tuple[str, str], float] = {}
        ends = [key for key in self.edges if key[0] in self.places and key[1] in self.places and key[0] != key[1]]
        forward, back = self._acyclic(ends)
        self._goes_back = bool(back)
        self._rank(forward)
        columns, passed = self._columns(forward)
        self._order(columns)
        self._stack(columns)
        self._across(columns, passed)
        self._finish(back, inside)

    # ---- sizes

    def _unlooped(self, record: Record) -> Record:
        """The record in which a boundary on a way from a part to itself, among others, is two: one for that way."""
        nodes, edges = (
            {node["id"]: node for node in record["nodes"]},
            {(e["from"], e["to"]): e for e in record["edges"]},
        )
        for stop in [node for node in record["nodes"] if node["kind"] == "stop"]:
            id = stop["id"]
            sources, targets = ({a for a, b in edges if b == id}, {b for a, b in edges if a == id})
            for number, part in enumerate(sorted(sources & targets) if len(sources | targets) > 1 else [], 1):
                loop = id + TWIN * number
                nodes[loop] = stop | {"id": loop, "passes": list(edges[id, part]["losses"])}
                edges[part, loop] = edges[part, id] | {"to": loop}
                edges[loop, part] = edges[id, part] | {"from": loop}
                for side, only in (((part, id), targets == {part}), ((id, part), sources == {part})):
                    if only:  # no other way leads there
                        del edges[side]
        return record | {"nodes": list(nodes.values()), "edges": list(edges.values())}

    def _loops(self) -> dict[str, list[str]]:
        """Boundaries that lie on a way from one part to itself, and on no other."""
        found: dict[str, list[str]] = {}
        for id, node in self.nodes.items():
            before = {a for a, b in self.edges if b == id}
            after = {b for a, b in self.edges if a == id}
            if node["kind"] == "stop" and len(after) == 1 and before == after:
                found.setdefault(after.pop(), []).append(id)
        return found

    def thick(self, keys: Iterable[tuple[str, str]]) -> float:
        each = [thickness(self.edges[key], self.scale, self.record["losses"]) for key in keys]
        return sum(each) + 7.0 * max(0, len(each) - 1)

    def _sized(self, node: Mapping[str, Any]) -> Place:
        id, kind = node["id"], node["kind"]
        through = max(self.thick(k for k in self.edges if k[0] == id), self.thick(k for k in self.edges if k[1] == id))
        if kind == "stop":
            width, core = stop_width(node), max(26.0, through + 14)
            return Place(id, width, core + 2 * LINE + 8, core, core / 2 + LINE + 4)
        if kind == "loss":
            core = max(30.0, through + 10)
            return Place(id, 46 + text_width(short(node["label"]), 13, bold=True), core, core, core / 2)
        loops = self.loops.get(id, [])
        attic = sum(self.loop_height(stop) for stop in loops)
        chips = chip_rows(node)
        width = max(
            [
                36 + text_width(short(node["label"]), 13, bold=True),
                16 + max((sum(w for _, _, w in r) for r in chips), default=0),
            ]
        )
        width = max([width, *(8 + text_width(text, 11) for cut in node["held"] for text in held_lines(cut))])
        core = max(34.0 + CHIP * len(chips), through + 12)
        held = (2 * LINE + 8) * len(node["held"])
        width = max([width, *(stop_width(self.nodes[stop]) + 56 for stop in loops)])
        return Place(id, width, attic + core + held, core, attic + core / 2)

    def loop_height(self, stop: str) -> float:
        return 2 * LINE + 36 + self.thick(k for k in self.edges if k[0] == stop)

    # ---- columns

    def _acyclic(self, ends: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The edges, and those of them that would close a circle, which go back."""
        after: dict[str, list[str]] = {id: [] for id in self.places}
        for a, b in ends:
            after[a].append(b)
        state: dict[str, int] = {}
        back: list[tuple[str, str]] = []
        for root in self.places:
            stack = [(root, iter(after[root]))] if root not in state else []
            state.setdefault(root, 1)
            while stack:
                id, rest = stack[-1]
                following = next(rest, None)
                if following is None:
                    state[id] = 2
                    stack.pop()
                elif state.get(following) == 1:
                    back.append((id, following))
                elif following not in state:
                    state[following] = 1
                    stack.append((following, iter(after[following])))
        return [end for end in ends if end not in back], back

    def _rank(self, forward: Sequence[tuple[str, str]]) -> None:
        for a, b in forward:
            self.places[a].after.append(b)
            self.places[b].before.append(a)
        order = self._topological()
        for place in order:
            place.rank = max((self.places[a].rank + 1 for a in place.before), default=0)
        for place in reversed(order):  # what comes from nowhere, or is a boundary, stands by what uses it
            nearest = min((self.places[b].rank - 1 for b in place.after), default=place.rank)
            if not place.before:
                place.rank = max(place.rank, nearest)
        inner = [p.rank for p in self.places.values() if self.nodes[p.id]["kind"] != "loss"]
        for place in self.places.values():
            if self.nodes[place.id]["kind"] == "loss" and not place.after:
                place.rank = max(max(inner, default=-1) + 1, place.rank)

    def _topological(self) -> list[Place]:
        due = {id: len(place.before) for id, place in self.places.items()}
        ready, order = [id for id, n in due.items() if not n], []
        while ready:
            place = self.places[ready.pop(0)]
            order.append(place)
            for b in place.after:
                due[b] -= 1
                if not due[b]:
                    ready.append(b)
        return order

    def _columns(
        self, forward: Sequence[tuple[str, str]]
    ) -> tuple[list[list[Place]], dict[tuple[str, str], list[Place]]]:
        """The places of each column; those of edges that pass one have no width."""
        last = max((p.rank for p in self.places.values()), default=0)
        columns: list[list[Place]] = [[] for _ in range(last + 1)]
        for place in self.places.values():
            columns[place.rank].append(place)
            place.before, place.after = [], []
        passed: dict[tuple[str, str], list[Place]] = {}
        self._all = dict(self.places)
        for a, b in forward:
            chain = [self.places[a]]
            for rank in range(self.places[a].rank + 1, self.places[b].rank):
                thick = thickness(self.edges[a, b], self.scale, self.record["losses"]) + 6
                dummy = Place(f"{a}>{b}>{rank}", 0.0, thick, thick, thick / 2, rank)
                self._all[dummy.id] = dummy
                columns[rank].append(dummy)
                passed.setdefault((a, b), []).append(dummy)
                chain.append(dummy)
            chain.append(self.places[b])
            for left, right in pairwise(chain):
                left.after.append(right.id)
                right.before.append(left.id)
        return columns, passed

    # ---- rows

    def _order(self, columns: list[list[Place]]) -> None:
        """Rows in which few edges cross: each by where its neighbours are, as often as that helps."""
        best, fewest = [list(c) for c in columns], self._crossings(columns)
        for turn in range(12):
            sides = columns[1:] if turn % 2 == 0 else columns[-2::-1]
            for column in sides:
                row = {p.id: i - len(c) / 2 for c in columns for i, p in enumerate(c)}
                keys = {}
                for p in column:
                    near = [row[n] for n in (p.before if turn % 2 == 0 else p.after)]
                    keys[p.id] = sum(near) / len(near) if near else row[p.id]
                column.sort(key=lambda p: keys[p.id])
            crossings = self._crossings(columns)
            if crossings < fewest:
                best, fewest = [list(c) for c in columns], crossings
        for column, rows in zip(columns, best, strict=True):
            column[:] = rows

    def _crossings(self, columns: Sequence[Sequence[Place]]) -> int:
        count = 0
        for left, right in pairwise(columns):
            row = {p.id: i for i, p in enumerate(right)}
            ends = [row[b] for p in left for b in sorted(p.after, key=lambda b: row.get(b, 0)) if b in row]
            count += sum(1 for i, a in enumerate(ends) for b in ends[i + 1 :] if a > b)
        return count

    def _stack(self, columns: Sequence[Sequence[Place]]) -> None:
        """Heights: as near to the neighbours as the order allows."""
        for column in columns:
            y = 0.0
            for place in column:
                place.y = y + place.above
                y += place.height + _ROW
            for place in column:
                place.y -= y / 2
        for turn in range(24):
            for column in columns if turn % 2 == 0 else columns[::-1]:
                wishes = []
                for place in column:
                    near = [(self._all[n].y, self._pull(place, self._all[n])) for n in (*place.before, *place.after)]
                    force = sum(pull for _, pull in near)
                    wishes.append((sum(y * pull for y, pull in near) / force if near else place.y, force or 0.1))
                for place, y in zip(column, _spread(column, wishes), strict=True):
                    place.y = y

    def _pull(self, place: Place, other: Place) -> float:
        """How much two neighbours want to be level: the inner pieces of a long edge the most."""
        return (1.0, 3.0, 8.0)[(place.id not in self.nodes) + (other.id not in self.nodes)]

    def _across(self, columns: Sequence[Sequence[Place]], passed: Mapping[tuple[str, str], Sequence[Place]]) -> None:
        top = min((p.y - p.above for p in self._all.values()), default=0.0)
        for place in self._all.values():
            place.y += MARGIN + 4 - top
        x = MARGIN + (24 if self._goes_back else 0)
        for column in columns:
            width = max((p.width for p in column), default=0.0)
            for place in column:
                place.x = x + (width - place.width) / 2
            x += width + _COLUMN
        for key, dummies in passed.items():
            self.ways[key] = [(p.x, p.y) for p in dummies]

    def _finish(self, back: Sequence[tuple[str, str]], inside: set[str]) -> None:
        width = max((p.x + p.width for p in self.places.values()), default=0.0) + MARGIN + (24 if back else 0)
        if width < LEAST:  # the legend is wider: in the middle above it
            for place in self._all.values():
                place.x += (LEAST - width) / 2
            self.ways = {key: [(x + (LEAST - width) / 2, y) for x, y in way] for key, way in self.ways.items()}
        height = max((p.y - p.above + p.height for p in self._all.values()), default=0.0)
        for key in back:
            thick = thickness(self.edges[key], self.scale, self.record["losses"])
            height += 14 + thick / 2
            self.under[key] = height
            height += thick / 2
        self.size = max(width, LEAST), height + MARGIN


def stop_width(node: Mapping[str, Any]) -> float:
    name, what = stop_lines(node)
    return 10 + max(text_width(name, 11.5, bold=node["boundary"] is not None), text_width(what, 10.5))


def stop_lines(node: Mapping[str, Any]) -> tuple[str, str]:
    """What stands above and below a bar: its name; the strategy, and where."""
    where = node["where"].rpartition("/")[2]
    if node["boundary"] is None:
        return short(node["label"]), short(where)
    return short(f"stop.{node['boundary']}"), short(f"{node['strategy']} · {where}")


def held_lines(cut: Mapping[str, Any]) -> tuple[str, str]:
    """The same of a bar below a part, whose parameters it holds."""
    where = cut["where"].rpartition("/")[2]
    if cut["boundary"] is None:
        return "weights held", short(f"requires_grad off · {where}")
    return short(f"stop.{cut['boundary']}"), short(f"{cut['strategy']} · {where}")


def chip_rows(node: Mapping[str, Any], most: int = 3) -> list[list[tuple[str, str, float]]]:
    """What a part learns, in rows of: the loss, its norm in words, the width."""
    chips = [(loss, number(norm), 24 + text_width(number(norm), 10.5) + 6) for loss, norm in node["learns"].items()]
    return [chips[i : i + most] for i in range(0, len(chips), most)]


def _spread(column: Sequence[Place], wishes: Sequence[tuple[float, float]]) -> list[float]:
    """The heights nearest to those wished for, by weight, at which nothing overlaps: pooled neighbours."""
    offset, at = [0.0], 0.0
    for upper, lower in pairwise(column):
        at += upper.height - upper.above + _ROW + lower.above
        offset.append(at)
    pools: list[tuple[float, float, int]] = []  # mean, weight, count
    for (wish, weight), shift in zip(wishes, offset, strict=True):
        pools.append((wish - shift, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (m1, w1, n1), (m2, w2, n2) = pools[-2:]
            pools[-2:] = [((m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2)]
    flat = [mean for mean, _, count in pools for _ in range(count)]
    return [y + shift for y, shift in zip(flat, offset, strict=True)]
