"""The flow picture of an audited step: values from left to right, the gradient of each loss back, and what stops it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stopgrad.flow import layout
from stopgrad.flow.ink import DASHES, LOSS_COLOURS, Ink, Point
from stopgrad.flow.layout import CHIP, LANE_GAP, LINE, Layout, Scale, number, short
from stopgrad.flow.legend import legend
from stopgrad.flow.routes import Record, flow_record
from stopgrad.flow.sentences import by, flow_sentences, listed, of_stop

if TYPE_CHECKING:
    from stopgrad.flow.audit import audit

_HEAD = 9.0  # length of an arrow's head


def flow_svg(flow: audit | Record, scale: Scale | None = None) -> str:
    """An audited step as one self-contained SVG, in light and dark.

    Args:
        flow: an audit made with ``draw=True``, or its record: what a run keeps as ``flow.json``.
        scale: the decades of norms from the thinnest arrow to the widest; by default those of this record.

    Raises:
        ValueError: the audit was made without ``draw=True``, or no loss was reported.
    """
    record = flow if isinstance(flow, Mapping) else flow_record(flow)
    drawing = _Drawing(record, scale)
    title = f"Where the gradient of {listed(record['losses'])} goes"
    return drawing.ink.svg(*drawing.size, title, " ".join(flow_sentences(record)))


def flow_figure(flow: audit | Record, scale: Scale | None = None) -> Any:
    """The same as a matplotlib figure: TensorBoard takes no SVG."""
    record = flow if isinstance(flow, Mapping) else flow_record(flow)
    drawing = _Drawing(record, scale)
    return drawing.ink.figure(*drawing.size)


class _Drawing:
    """Everything of a record as shapes."""

    def __init__(self, record: Record, scale: Scale | None) -> None:
        self.record = record
        self.scale = layout.scale_of([record]) if scale is None else scale
        self.losses = {loss: i for i, loss in enumerate(record["losses"])}
        self.ink = Ink()
        self.lay = Layout(record, self.scale)
        self._ports = self._find_ports()
        width, height = self.lay.size
        arrows = [key for key in self.lay.edges if key[0] in self.lay.places and key[1] in self.lay.places]
        for key in arrows:
            if key[0] != key[1] and not layout.lanes(self.lay.edges[key], self.scale, record["losses"]):
                self._value(key)
        for key in arrows:
            if key[0] != key[1]:
                self._edge(key)
        for part, stops in self.lay.loops.items():
            self._loops(part, stops)
        for id, node in self.lay.nodes.items():
            if id in self.lay.places:
                {"module": self._module, "loss": self._loss, "stop": self._stop}[node["kind"]](id, node)
        height = legend(self.ink, record, self.scale, width, height)
        self.size = width, height

    def colour(self, loss: str) -> str:
        return str(self.losses[loss] % LOSS_COLOURS)

    def dash(self, loss: str, width: float) -> list[float]:
        stretch = max(0.7, width / 5)
        return [each * stretch for each in DASHES[self.losses[loss] % len(DASHES)]]

    def letter(self, loss: str) -> str:
        return "abcdefghijklmnopqrstuvwxyz"[self.losses[loss]]

    def _open(self, kind: str, data: Mapping[str, str], title: str) -> None:
        self.ink.open(kind, {key: value.rstrip(layout.TWIN) for key, value in data.items()}, title)

    # ---- ways

    def _find_ports(self) -> dict[tuple[str, str], tuple[float, float]]:
        """The heights at which each edge leaves the one node and comes to the other."""
        found: dict[tuple[str, str], list[float]] = {}
        for side in (0, 1):
            for id, place in self.lay.places.items():
                keys = [k for k in self.lay.edges if k[side] == id and k[0] != k[1] and k[1 - side] in self.lay.places]

                def far(key: tuple[str, str], side: int = side) -> float:
                    way = self.lay.ways.get(key)
                    if key in self.lay.under:
                        return self.lay.under[key]
                    return way[0 if side == 0 else -1][1] if way else self.lay.places[key[1 - side]].y

                keys.sort(key=far)
                y = place.y - self.lay.thick(keys) / 2
                for key in keys:
                    thick = layout.thickness(self.lay.edges[key], self.scale, self.record["losses"])
                    found.setdefault(key, [0.0, 0.0])[side] = y + thick / 2
                    y += thick + 7
        return {key: (ys[0], ys[1]) for key, ys in found.items()}

    def _steps(
        self, key: tuple[str, str], shift: float, start: float, end: float
    ) -> list[tuple[str, tuple[Point, ...]]]:
        """The way of an edge from its right end to its left one, ``shift`` below its middle.

        Args:
            start, end: how far from the nodes it begins and ends.
        """
        a, b = (self.lay.places[id] for id in key)
        ya, yb = (y + shift for y in self._ports[key])
        left, right = self._side(key[0], 1), self._side(key[1], -1)
        if key in self.lay.under:
            y = self.lay.under[key] + shift
            out, into = a.x + a.width + 16 + shift, b.x - 16 - shift
            return _rounded([(right - start, yb), (into, yb), (into, y), (out, y), (out, ya), (left + end, ya)], 10)
        points = [(b.x, yb), *((x, y + shift) for x, y in self.lay.ways.get(key, [])[::-1]), (a.x + a.width, ya)]
        steps: list[tuple[str, tuple[Point, ...]]] = [("M", ((right - start, yb),))]
        if right - start > b.x:
            steps.append(("L", (points[0],)))
        else:
            points[0] = (right - start, yb)
        tail = left + end < points[-1][0]
        if not tail:
            points[-1] = (left + end, ya)
        for (x1, y1), (x2, y2) in pairwise(points):
            half = (x1 + x2) / 2
            steps.append(("C", ((half, y1), (half, y2), (x2, y2))) if abs(y1 - y2) > 0.05 else ("L", ((x2, y2),)))
        if tail:
            steps.append(("L", ((left + end, ya),)))
        return steps

    def _side(self, id: str, side: int) -> float:
        """Where ways begin or end at a node: at the bar of a boundary."""
        place = self.lay.places[id]
        if self.lay.nodes[id]["kind"] == "stop":
            return place.x + place.width / 2
        return place.x + place.width if side > 0 else place.x

    def _value(self, key: tuple[str, str]) -> None:
        self._open("value", {"from": key[0], "to": key[1]}, f"{self._name(key[0])} → {self._name(key[1])}: value only")
        gap = [4.0 if self._closed(id) else 0.0 for id in key]
        self.ink.path(self._steps(key, 0.0, gap[1], gap[0]), "line", 1.4)
        self.ink.close()

    def _closed(self, id: str) -> bool:
        node = self.lay.nodes[id]
        return node["kind"] == "stop" and not node["open"]

    def _name(self, id: str) -> str:
        return self.lay.nodes[id]["label"]

    def _edge(self, key: tuple[str, str]) -> None:
        edge = self.lay.edges[key]
        lanes = layout.lanes(edge, self.scale, self.record["losses"])
        y = -sum(max(width, 8.0) for _, width, _ in lanes) / 2 - LANE_GAP * (len(lanes) - 1) / 2
        for loss, width, stopped in lanes:
            middle = y + max(width, 8.0) / 2
            through = self.lay.nodes[key[0]]["kind"] == "stop" and not stopped
            head = 0.0 if through else _HEAD + width / 3
            steps = self._steps(key, middle, 0.0, (5.0 if stopped else 0.0) + head)
            self._arrow(key, loss, width, steps, stopped, through)
            y += max(width, 8.0) + LANE_GAP

    def _arrow(
        self,
        key: tuple[str, str],
        loss: str,
        width: float,
        steps: list[tuple[str, tuple[Point, ...]]],
        stopped: bool,
        through: bool,
    ) -> None:
        colour, edge = self.colour(loss), self.lay.edges[key]
        said = "is stopped here" if stopped else f"|g| {number(edge['losses'][loss]['norm'])}"
        title = f"{loss}: {self._name(key[1])} → {self._name(key[0])}: {said}"
        kind = "edge stopped" if stopped else "edge"
        self._open(kind, {"loss": loss, "from": key[0], "to": key[1]}, title)
        self.ink.path(steps, "back", width + 3)
        self.ink.path(steps, colour, width, self.dash(loss, width))
        if not through:
            x, y = steps[-1][1][-1]
            before = steps[-1][1][0] if steps[-1][0] == "C" else steps[-2][1][-1]
            self._head((x, y), before[0] > x, width, colour, loss)
        self.ink.close()

    def _head(self, at: Point, leftwards: bool, width: float, colour: str, loss: str) -> None:
        (x, y), way = at, -1 if leftwards else 1
        half, long = width / 2 + 3.6, _HEAD + width / 3
        self.ink.path(
            [
                ("M", ((x - way * 0.5, y - half),)),
                ("L", ((x + way * long, y),)),
                ("L", ((x - way * 0.5, y + half),)),
                ("Z", ()),
            ],
            fill=colour,
        )
        self.ink.circle(x - way * 9, y, 6.6, colour, "back")
        self.ink.text(x - way * 9, y + 3.1, self.letter(loss), 9.5, "back", bold=True)

    # ---- nodes

    def _module(self, id: str, node: Mapping[str, Any]) -> None:
        place = self.lay.places[id]
        top = place.y - place.core / 2
        chips = layout.chip_rows(node)
        learnt = [f"{loss} |g| {number(norm)}" for loss, norm in node["learns"].items()]
        self._open("node module", {"node": id}, f"{id}: its weights get {listed(learnt) or 'nothing'}")
        self.ink.rect(place.x, top, place.width, place.core, 8, "raised", "line")
        y = place.y - CHIP * len(chips) / 2
        self.ink.text(place.x + place.width / 2, y + 4.5, short(node["label"]), 13, bold=True)
        for row in chips:
            y += CHIP
            x = place.x + (place.width - sum(w for _, _, w in row)) / 2
            for loss, norm, width in row:
                self.ink.circle(x + 9, y + 1, 6, self.colour(loss))
                self.ink.text(x + 9, y + 4, self.letter(loss), 9, "back", bold=True)
                self.ink.text(x + 18, y + 4.6, norm, 10.5, "soft", "start")
                x += width
        self.ink.close()
        y = place.y + place.core / 2
        for cut in node["held"]:
            y = self._held(place, y, node, cut)

    def _held(self, place: layout.Place, y: float, node: Mapping[str, Any], cut: Mapping[str, Any]) -> float:
        """A bar below a part: its weights get nothing."""
        told = listed(cut["losses"]) or "no loss"
        title = f"{by(cut)} holds the weights of {node['label']} from {told}"
        self._open("cut held", {"boundary": cut["boundary"] or "", "where": cut["where"], "node": node["id"]}, title)
        x = place.x + place.width / 2
        self.ink.path([("M", ((x - 16, y + 3.5),)), ("L", ((x + 16, y + 3.5),))], "ink", 3)
        for i, (text, size) in enumerate(zip(layout.held_lines(cut), (11.5, 10.5), strict=True)):
            self.ink.text(x, y + 17 + LINE * i, text, size, "ink" if i == 0 else "soft", bold=i == 0, halo=True)
        self.ink.close()
        return y + 2 * LINE + 8

    def _loss(self, id: str, node: Mapping[str, Any]) -> None:
        place, colour = self.lay.places[id], self.colour(id)
        self._open("node loss", {"node": id, "loss": id}, f"loss {id}")
        self.ink.rect(
            place.x,
            place.y - place.core / 2,
            place.width,
            place.core,
            min(16, place.core / 2),
            "back",
            colour,
        )
        self.ink.circle(place.x + 16, place.y, 8.5, colour)
        self.ink.text(place.x + 16, place.y + 3.8, self.letter(id), 11.5, "back", bold=True)
        self.ink.text(place.x + 31, place.y + 4.5, short(node["label"]), 13, anchor="start", bold=True)
        self.ink.close()

    def _stop(self, id: str, node: dict[str, Any]) -> None:
        place = self.lay.places[id]
        self._gate(id, node, place.x + place.width / 2, place.y, place.core)

    def _gate(self, id: str, node: dict[str, Any], x: float, y: float, core: float) -> None:
        """Two bars across a way, or an open gate beside it, with its name above and what it does below."""
        told = " ".join(of_stop(node | {"id": id.rstrip(layout.TWIN)}, self.record, self.lay.nodes))
        told = told or f"{node['label']}: nothing comes here"
        state = "closed" if self._closed(id) else "open"
        data = {"boundary": node["boundary"] or "", "where": node["where"], "node": id}
        self._open(f"cut {state}", data, told)
        half = core / 2
        if state == "closed":
            for dx in (-2.6, 2.6):
                self.ink.path([("M", ((x + dx, y - half + 2),)), ("L", ((x + dx, y + half - 2),))], "ink", 2.8)
        else:
            inner = max(3.0, half - 9)
            for way in (-1, 1):
                self.ink.path([("M", ((x, y + way * half),)), ("L", ((x - 8, y + way * inner),))], "ink", 2.2)
                self.ink.circle(x, y + way * half, 2.4, "ink")
        name, what = layout.stop_lines(node)
        named = node["boundary"] is not None
        self.ink.text(x, y - half - 6, name, 11.5, "ink" if named else "soft", bold=named, halo=True)
        self.ink.text(x, y + half + 13, what, 10.5, "soft", halo=True)
        self.ink.close()

    def _loops(self, part: str, stops: Sequence[str]) -> None:
        """Ways from a part to itself, above it."""
        place = self.lay.places[part]
        top = place.y - place.core / 2
        y = top
        for i, stop in enumerate(stops):
            high = self.lay.loop_height(stop)
            core = high - 2 * LINE - 12
            middle = y - LINE - 8 - core / 2
            key = (stop, part)
            edge, inset = self.lay.edges[key], 20 - 6 * min(i, 2)
            lanes = layout.lanes(edge, self.scale, self.record["losses"])
            x1, x2, x = place.x + inset, place.x + place.width - inset, place.x + place.width / 2
            shown = layout.lanes(edge, self.scale, self.record["losses"])
            self._open("value", {"from": part, "to": stop}, f"{part} → {part}, by {self._name(stop)}")
            self.ink.path(_rounded([(x2, top), (x2, middle), (x1, middle), (x1, top)], 9), "line", 1.4)
            self.ink.close()
            shift = -sum(max(w, 8.0) for _, w, _ in shown) / 2
            for loss, width, stopped in lanes:
                at = shift + max(width, 8.0) / 2
                head = _HEAD + width / 3
                if stopped:
                    steps = _rounded([(x1 + at, top), (x1 + at, middle + at), (x - 6 - head, middle + at)], 9)
                else:
                    points = [(x1 + at, top), (x1 + at, middle + at), (x2 - at, middle + at), (x2 - at, top - head)]
                    steps = _rounded(points, 9)
                self._loop_arrow(key, loss, width, steps, stopped)
                shift += max(width, 8.0) + LANE_GAP
            self._gate(stop, self.lay.nodes[stop], x, middle, core)
            y -= high

    def _loop_arrow(
        self, key: tuple[str, str], loss: str, width: float, steps: list[tuple[str, tuple[Point, ...]]], stopped: bool
    ) -> None:
        colour, edge = self.colour(loss), self.lay.edges[key]
        said = "is stopped here" if stopped else f"|g| {number(edge['losses'][loss]['norm'])}"
        self._open(
            "edge stopped" if stopped else "edge", {"loss": loss, "from": key[0], "to": key[1]}, f"{loss}: {said}"
        )
        self.ink.path(steps, colour, width, self.dash(loss, width))
        x, y = steps[-1][1][-1]
        if stopped:
            self._head((x, y), False, width, colour, loss)
        else:
            half, long = width / 2 + 3.6, _HEAD + width / 3
            self.ink.path(
                [("M", ((x - half, y),)), ("L", ((x, y + long),)), ("L", ((x + half, y),)), ("Z", ())], fill=colour
            )
        self.ink.close()


def _rounded(points: Sequence[Point], radius: float) -> list[tuple[str, tuple[Point, ...]]]:
    """A way of straight lines with round corners."""
    steps: list[tuple[str, tuple[Point, ...]]] = [("M", (points[0],))]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        first, second = (_towards(corner, end, radius) for end in (before, after))
        steps += [("L", (first,)), ("C", (corner, corner, second))]
    return [*steps, ("L", (points[-1],))]


def _towards(start: Point, end: Point, far: float) -> Point:
    length = max(1e-6, ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5)
    share = min(0.5, far / length)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
