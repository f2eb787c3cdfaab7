"""The value flow of one audited step, drawn: modules on the left, losses on the right, cuts marked with their line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from stopgrad.flow.page import Svg
from stopgrad.flow.values import CutSite, Value, ancestors, leaves_graphless, place

if TYPE_CHECKING:
    from stopgrad.flow.audit import audit

MOST_NODES = 24  # modules are drawn at the depth of names that gives at most so many
_ROW, _HEIGHT = 78, 30
_GAP, _CUT_GAP = 48, 132  # between columns; the wider one has room for a cut's line
_LIVE, _CUT, _INK = "#1b7f5c", "#b23a48", "#222"
_FILLS = {"module": "#e9f3ef", "stop": "#fbeaec", "loss": "#fff4d6"}


@dataclass
class Node:
    """A module, a boundary or a loss; ``rank`` is its column, ``row`` its place in it."""

    label: str
    kind: str
    first: int
    rank: int = 0
    row: float = 0.0
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return 18 + 7.2 * len(self.label)


@dataclass
class Edge:
    """Values that go from one node to another: some with a gradient, or all through cuts."""

    live: bool = False
    cuts: dict[CutSite, None] = field(default_factory=dict)


Edges = dict[tuple[str, str], Edge]


def flow_graph(losses: Mapping[Value, str], most: int = MOST_NODES) -> tuple[dict[str, Node], Edges]:
    """The value graph of some losses, folded to modules, boundaries and losses."""
    order = ancestors(*losses)
    exits = set().union(*(leaves_graphless(order, loss) for loss in losses))
    names = _folded({value.module for value in order if value.module}, most)
    nodes: dict[str, Node] = {}
    edges: Edges = {}
    # For each value, the nodes that it comes from, each with the cuts on the way (None: uncut).
    sources: dict[Value, dict[tuple[str, CutSite | None], None]] = {}
    for value in order:
        incoming = {key: None for parent in value.parents for key in sources[parent]}
        label, kind = _node_of(value, losses, names)
        cut = value.site() if value.cut or value in exits else None
        if label:
            nodes.setdefault(label, Node(label, kind, value.seq))
            for source, site in incoming:
                if source != label:
                    edge = edges.setdefault((source, label), Edge())
                    edge.live |= site is None
                    edge.cuts |= {} if site is None else {site: None}
            incoming = {(label, None): None}
        sources[value] = {(source, cut or site): None for source, site in incoming}
    return nodes, edges


def _node_of(value: Value, losses: Mapping[Value, str], names: Mapping[str, str]) -> tuple[str, str]:
    if value in losses:
        name = losses[value]
        return f"{name} (loss)" if name in names.values() else name, "loss"
    if value.op.startswith("stop."):
        return value.op, "stop"
    label = names.get(value.module, "") if value.parents else ""
    return label, "module" if label else ""


def _folded(names: set[str], most: int) -> dict[str, str]:
    """Each module's name, cut to the depth at which there are at most ``most`` of them.

    What a container computes between the modules inside it belongs to no node: its name is "".
    """
    depth = max((name.count(".") + 1 for name in names), default=1)
    while True:
        folded = {name: ".".join(name.split(".")[:depth]) for name in names}
        shown = set(folded.values())
        if depth <= 1 or len(shown) <= most:
            containers = {name for name in shown if any(other.startswith(f"{name}.") for other in shown)}
            return {name: "" if short in containers else short for name, short in folded.items()}
        depth -= 1


def _arrange(nodes: dict[str, Node], edges: Edges) -> None:
    """Columns by the longest way from the left, losses last; rows by where the neighbours are."""
    forward = [(a, b) for a, b in edges if nodes[a].first < nodes[b].first]
    for node in sorted(nodes.values(), key=lambda n: n.first):
        node.rank = max((nodes[a].rank + 1 for a, b in forward if b == node.label), default=0)
    for node in sorted(nodes.values(), key=lambda n: -n.first):  # what comes from nowhere stands by what uses it
        if node.kind == "stop" and not any(b == node.label for _, b in forward):
            node.rank = max(0, min((nodes[b].rank - 1 for a, b in forward if a == node.label), default=0))
    last = max((n.rank for n in nodes.values() if n.kind != "loss"), default=-1) + 1
    for node in nodes.values():
        if node.kind == "loss":
            node.rank = last
    columns = [[n for n in nodes.values() if n.rank == rank] for rank in range(last + 1)]
    for _ in range(4):
        for column in columns:
            for node in column:
                near = [nodes[a if b == node.label else b].row for a, b in edges if node.label in (a, b)]
                node.row = sum(near) / len(near) if near else node.row
            for row, node in enumerate(sorted(column, key=lambda n: (n.row, n.first))):
                node.row = row - (len(column) - 1) / 2
    x, top = 20.0, 50 - min(node.row for node in nodes.values()) * _ROW
    top += max(0.0, *(-_bend(nodes[a], nodes[b]) for a, b in edges)) * 0.75
    for rank, column in enumerate(columns):
        width = max((n.width for n in column), default=0)
        for node in column:
            node.x, node.y = x + (width - node.width) / 2, top + node.row * _ROW
        marked = any(nodes[a].rank == rank and nodes[b].rank == rank + 1 and not e.live for (a, b), e in edges.items())
        x += width + (_CUT_GAP if marked else _GAP)


def flow_svg(flow: audit, most: int = MOST_NODES) -> Svg:
    """One audited step as a self-contained SVG.

    Green lines carry gradient back; red dashed ones carry a value whose gradient is cut: ``‖`` with the cut's line.

    Args:
        flow: an audit made with ``draw=True``.
        most: how many modules to show at most; deeper ones are folded into their parents.

    Raises:
        ValueError: the audit was made without ``draw=True``, or no loss was reported.
    """
    if not flow.draw or not flow.loss_values:
        raise ValueError("flow_svg: nothing to draw; use audit(..., draw=True) and report a loss")
    nodes, edges = flow_graph(flow.loss_values, most)
    _arrange(nodes, edges)
    width = max(n.x + n.width for n in nodes.values()) + 24
    height = max(n.y for n in nodes.values()) + 70
    ends = [(nodes[a], nodes[b], edge) for (a, b), edge in edges.items()]
    shapes = [*(_edge(*end) for end in ends), *map(_box, nodes.values()), *(_mark(*end) for end in ends)]
    return Svg(
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
        f"font-family='system-ui, sans-serif' font-size='12'><rect width='100%' height='100%' fill='#fff'/>"
        f"{''.join(shapes)}{_legend(height - 16)}</svg>"
    )


def _box(node: Node) -> str:
    fill = _FILLS[node.kind]
    return (
        f"<rect x='{node.x:.1f}' y='{node.y - _HEIGHT / 2:.1f}' width='{node.width:.1f}' height='{_HEIGHT}' rx='6' "
        f"fill='{fill}' stroke='#888'/><text x='{node.x + node.width / 2:.1f}' y='{node.y + 4:.1f}' "
        f"text-anchor='middle' fill='{_INK}'>{escape(node.label)}</text>"
    )


def _bend(a: Node, b: Node) -> float:
    """How far an edge bows: around the boxes of the columns that it skips, outwards; below, if it goes back."""
    skipped = b.rank - a.rank - 1
    if skipped < 0:
        return 60.0
    return 0.0 if skipped == 0 else (26.0 + 12 * skipped) * (1 if a.row + b.row > 0 else -1)


def _edge(a: Node, b: Node, edge: Edge) -> str:
    x1, x2, bend = a.x + a.width, b.x, _bend(a, b)
    third = (x2 - x1) / 3
    colour, dash = (_LIVE, "") if edge.live else (_CUT, " stroke-dasharray='5 4'")
    ends = f"{x1 + third:.1f},{a.y + bend:.1f} {x2 - third:.1f},{b.y + bend:.1f} {x2:.1f},{b.y:.1f}"
    why = "; ".join(map(str, edge.cuts)) or "gradient flows"
    path = f"<path d='M{x1:.1f},{a.y:.1f} C{ends}' fill='none' stroke='{colour}' stroke-width='1.6'{dash}/>"
    return f"<g><title>{escape(f'{a.label} → {b.label}: {why}')}</title>{path}</g>"


def _mark(a: Node, b: Node, edge: Edge) -> str:
    """``‖`` and the line, in the middle of an edge that carries no gradient."""
    if edge.live:
        return ""
    x, y = (a.x + a.width + b.x) / 2, (a.y + b.y) / 2 + 0.75 * _bend(a, b)
    cut, *more = edge.cuts
    site = place(cut.file, cut.line).rpartition("/")[2]
    label = escape(f"{cut.kind} {site}{f' +{len(more)}' if more else ''}")
    style = f"text-anchor='middle' fill='{_CUT}' paint-order='stroke' stroke='#fff'"
    bars = f"<text x='{x:.1f}' y='{y + 5:.1f}' font-size='16' font-weight='700' stroke-width='2' {style}>‖</text>"
    return f"{bars}<text x='{x:.1f}' y='{y + 19:.1f}' font-size='10' stroke-width='4' {style}>{label}</text>"


def _legend(y: float) -> str:
    return (
        f"<text x='20' y='{y:.0f}' font-size='11' fill='#555'><tspan fill='{_LIVE}'>━</tspan> value and gradient   "
        f"<tspan fill='{_CUT}'>╍ ‖</tspan> value only: the gradient is cut at this line</text>"
    )
