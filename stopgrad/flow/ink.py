"""What a flow picture is drawn with: shapes that are written as an SVG, or drawn by matplotlib for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# Of each colour: in light, in dark. Those of losses are told apart by colour-blind eyes too (after Okabe and Ito).
COLOURS = {
    "back": ("#ffffff", "#14181a"),
    "raised": ("#f1f4f5", "#23292c"),
    "ink": ("#1c2326", "#e8edef"),
    "soft": ("#566066", "#a7b1b6"),
    "line": ("#9aa4a9", "#68737a"),
    "0": ("#0069a8", "#5bb8f0"),
    "1": ("#c24a00", "#ff9a5c"),
    "2": ("#00775a", "#45cba0"),
    "3": ("#a03a86", "#ea9fd2"),
    "4": ("#7d6000", "#e6c54e"),
    "5": ("#5a48b0", "#b8a8ff"),
    "6": ("#8c2f39", "#ff98a2"),
    "7": ("#46525a", "#c3ccd1"),
}
LOSS_COLOURS = 8
DASHES = ((), (9, 4), (2.5, 3), (13, 3, 2.5, 3), (5, 2.5), (14, 3, 2.5, 3, 2.5, 3), (1.5, 5), (20, 4))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
Point = tuple[float, float]


def style(names: Sequence[str]) -> str:
    """CSS: variables by which a page may set each colour, with a flat one beside it; dark where that is preferred."""
    flat = "".join(
        f".flow .f{name}{{fill:{light};fill:var(--flow-{name},{light})}}"
        f".flow .s{name}{{stroke:{light};stroke:var(--flow-{name},{light})}}"
        for name, (light, _) in ((name, COLOURS[name]) for name in names)
    )
    dark = "".join(f"--flow-{name}:{COLOURS[name][1]};" for name in names)
    return (
        f".flow{{font-family:{FONT}}}.flow .halo{{paint-order:stroke;stroke-width:4px}}"
        f"{flat}@media screen and (prefers-color-scheme:dark){{.flow{{{dark}}}}}"
    )


def _n(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")


class Ink:
    """Shapes, in the order in which they are drawn."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, dict[str, Any]]] = []

    def open(self, kind: str, data: Mapping[str, str], title: str) -> None:
        """Begin a group, with what a script may find it by."""
        self.shapes.append(("open", {"kind": kind, "data": dict(data), "title": title}))

    def close(self) -> None:
        self.shapes.append(("close", {}))

    def path(
        self,
        steps: Sequence[tuple[str, tuple[Point, ...]]],
        stroke: str = "",
        width: float = 1.0,
        dash: Sequence[float] = (),
        fill: str = "",
    ) -> None:
        """Of steps ``("M", (p,))``, ``("L", (p,))``, ``("C", (p, p, p))``, ``("Z", ())``."""
        self.shapes.append(
            ("path", {"steps": steps, "stroke": stroke, "width": width, "dash": tuple(dash), "fill": fill})
        )

    def rect(self, x: float, y: float, w: float, h: float, r: float, fill: str, stroke: str = "") -> None:
        self.shapes.append(("rect", {"x": x, "y": y, "w": w, "h": h, "r": r, "fill": fill, "stroke": stroke}))

    def circle(self, x: float, y: float, r: float, fill: str, stroke: str = "") -> None:
        self.shapes.append(("circle", {"x": x, "y": y, "r": r, "fill": fill, "stroke": stroke}))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        fill: str = "ink",
        anchor: str = "middle",
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """At its baseline. With a halo, what lies below is kept off it."""
        self.shapes.append(
            (
                "text",
                {
                    "x": x,
                    "y": y,
                    "text": text,
                    "size": size,
                    "fill": fill,
                    "anchor": anchor,
                    "bold": bold,
                    "halo": halo,
                },
            )
        )

    def svg(self, width: float, height: float, title: str, words: str, data: str = "") -> str:
        """One SVG that needs nothing else."""
        used = {s[key] for _, s in self.shapes for key in ("fill", "stroke") if s.get(key)} | {"back"}
        names = [name for name in COLOURS if name in used]
        body = "".join(_SVG[kind](shape) for kind, shape in self.shapes)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' class='flow' role='img' width='{width:.0f}' "
            f"height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'{data}><title>{escape(title)}</title>"
            f"<desc>{escape(words)}</desc><style>{style(names)}</style>"
            f"<rect class='fback' width='100%' height='100%' rx='6'/>{body}</svg>"
        )

    def figure(self, width: float, height: float) -> Any:
        """The same as a matplotlib figure, in light."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), dpi=110)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        for z, (kind, shape) in enumerate(self.shapes):
            _draw(axes, kind, shape, z)
        return figure


def _class(shape: Mapping[str, Any]) -> str:
    names = [f"f{shape['fill']}"] if shape["fill"] else []
    names += [f"s{shape['stroke']}"] if shape.get("stroke") else []
    return f" class='{' '.join(names)}'" if names else ""


def _path(s: dict[str, Any]) -> str:
    d = "".join(code + " ".join(f"{_n(x)},{_n(y)}" for x, y in points) for code, points in s["steps"])
    fill = "" if s["fill"] else " fill='none'"
    width = f" stroke-width='{_n(s['width'])}'" if s["stroke"] and s["width"] != 1 else ""
    dash = f" stroke-dasharray='{' '.join(map(_n, s['dash']))}'" if s["dash"] else ""
    return f"<path{_class(s)} d='{d}'{fill}{width}{dash}/>"


def _rect(s: dict[str, Any]) -> str:
    sides = f"x='{_n(s['x'])}' y='{_n(s['y'])}' width='{_n(s['w'])}' height='{_n(s['h'])}'"
    return f"<rect{_class(s)} {sides} rx='{_n(s['r'])}'/>"


def _circle(s: dict[str, Any]) -> str:
    return f"<circle{_class(s)} cx='{_n(s['x'])}' cy='{_n(s['y'])}' r='{_n(s['r'])}'/>"


def _text(s: dict[str, Any]) -> str:
    names = f"f{s['fill']}{' halo sback' if s['halo'] else ''}"
    anchor = "" if s["anchor"] == "start" else f" text-anchor='{s['anchor']}'"
    bold = " font-weight='600'" if s["bold"] else ""
    at = f"x='{_n(s['x'])}' y='{_n(s['y'])}' font-size='{_n(s['size'])}'"
    return f"<text class='{names}' {at}{anchor}{bold}>{escape(s['text'])}</text>"


def _open(s: dict[str, Any]) -> str:
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in s["data"].items())
    return f"<g class='{s['kind']}'{data}>" + (f"<title>{escape(s['title'])}</title>" if s["title"] else "")


_SVG: dict[str, Any] = {
    "open": _open,
    "close": lambda _: "</g>",
    "path": _path,
    "rect": _rect,
    "circle": _circle,
    "text": _text,
}


def _draw(axes: Any, kind: str, s: dict[str, Any], z: int) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    def light(key: str) -> str:
        return COLOURS[s[key]][0] if s.get(key) else "none"

    if kind == "path":
        codes = {"M": [Path.MOVETO], "L": [Path.LINETO], "C": [Path.CURVE4] * 3, "Z": [Path.CLOSEPOLY]}
        points = [p for code, each in s["steps"] for p in (each or ((0.0, 0.0),) if code == "Z" else each)]
        path = Path(points, [c for code, _ in s["steps"] for c in codes[code]])
        line = (0, [each / s["width"] for each in s["dash"]]) if s["dash"] else "solid"  # matplotlib scales them
        patch = PathPatch(path, fc=light("fill"), ec=light("stroke"), lw=s["width"], zorder=z, capstyle="butt")
        patch.set_linestyle(line)
        axes.add_patch(patch)
    elif kind == "rect":
        r = min(s["r"], s["w"] / 2, s["h"] / 2)
        box = FancyBboxPatch(
            (s["x"], s["y"]), s["w"], s["h"], boxstyle=f"round,pad=0,rounding_size={r}", mutation_aspect=1
        )
        box.set(fc=light("fill"), ec=light("stroke"), lw=1, zorder=z)
        axes.add_patch(box)
    elif kind == "circle":
        axes.add_patch(Circle((s["x"], s["y"]), s["r"], fc=light("fill"), ec=light("stroke"), zorder=z))
    elif kind == "text":
        from matplotlib.patheffects import withStroke

        anchor = {"start": "left", "middle": "center", "end": "right"}[s["anchor"]]
        weight = "bold" if s["bold"] else "normal"
        text = axes.text(
            s["x"], s["y"], s["text"], size=s["size"] * 0.92, color=light("fill"), ha=anchor, va="baseline"
        )
        text.set(fontweight=weight, zorder=z, parse_math=False)
        if s["halo"]:
            text.set_path_effects([withStroke(linewidth=3, foreground=COLOURS["back"][0])])
