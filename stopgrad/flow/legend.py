"""What the signs of a flow picture mean, below it: of those signs that it has."""

from __future__ import annotations

from stopgrad.flow.ink import Ink
from stopgrad.flow.layout import MARGIN, Scale, number, text_width, width_of
from stopgrad.flow.routes import Record


def legend(ink: Ink, record: Record, scale: Scale, width: float, height: float) -> float:
    """What the signs mean, in as many rows as it takes; returns the new height."""
    low, high = scale
    y, x = height + 10.0, MARGIN
    ink.open("legend", {}, "")
    ink.path([("M", ((x, height - 4),)), ("L", ((width - x, height - 4),))], "line", 0.6)
    shown = any(of["norm"] for edge in record["edges"] for of in edge["losses"].values())
    norms = ", ".join(number(10**power) for power in (low, (low + high) / 2, high))
    states = {shape["kind"] for kind, shape in ink.shapes if kind == "open"}
    kinds = {name for state in states for name in state.split()}
    items = [
        ("value", "value", "value" in kinds),
        ("arrow", "gradient, back from its loss", "edge" in kinds),
        ("widths", f"|g| where the arrow ends: {norms}", shown),
        ("bar", "cut: nothing left to measure", "closed" in kinds),
        ("open", "open switch", "open" in kinds),
        ("held", "weights held", "held" in kinds),
        ("chip", "|g| at the weights", any(node.get("learns") for node in record["nodes"])),
    ]
    items = [(sign, text) for sign, text, used in items if used]
    if record["uncrossed"]:
        items.append(("", "not crossed here:"))
        items += [("", f"stop.{name}") for name in record["uncrossed"]]
    for sign, text in items:
        before = 86 if sign == "widths" else 32 if sign else 0
        wide = before + text_width(text, 10.5) + 18
        if x > MARGIN and x + wide > width:
            x, y = MARGIN, y + 18
        if sign:
            _sign(ink, scale, sign, x, y)
        ink.text(x + before, y + 3.6, text, 10.5, "soft", "start")
        x += wide
    ink.close()
    return y + 16


def _sign(ink: Ink, scale: Scale, sign: str, x: float, y: float) -> None:
    def line(x1: float, x2: float, colour: str, width: float) -> None:
        ink.path([("M", ((x1, y),)), ("L", ((x2, y),))], colour, width)

    if sign == "value":
        line(x, x + 26, "line", 1.4)
    elif sign == "arrow":
        line(x + 8, x + 28, "soft", 3)
        ink.path([("M", ((x + 9, y - 5),)), ("L", ((x, y),)), ("L", ((x + 9, y + 5),)), ("Z", ())], fill="soft")
    elif sign == "widths":
        for i, share in enumerate((0.0, 0.5, 1.0)):
            norm = 10 ** (scale[0] + share * (scale[1] - scale[0]))
            line(x + 26 * i, x + 26 * i + 22, "soft", width_of(norm, scale))
    elif sign == "bar":
        for dx in (10.4, 15.6):
            ink.path([("M", ((x + dx, y - 6),)), ("L", ((x + dx, y + 6),))], "ink", 2.8)
    elif sign == "open":
        for way in (-1, 1):
            ink.path([("M", ((x + 15, y + way * 6.5),)), ("L", ((x + 9, y + way * 2),))], "ink", 2)
            ink.circle(x + 15, y + way * 6.5, 1.9, "ink")
    elif sign == "held":
        line(x + 2, x + 24, "ink", 3)
    else:
        ink.circle(x + 13, y, 6, "soft")
        ink.text(x + 13, y + 3, "a", 9, "back", bold=True)
