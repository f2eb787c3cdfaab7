"""Pictures of a flow matrix: a self-contained SVG or HTML file, and a figure for TensorBoard."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from stopgrad.flow import fold

if TYPE_CHECKING:
    from stopgrad.flow.matrix import FlowMatrix

# Fill and text colour of each state; they differ in lightness too, for colour-blind eyes and printers.
COLOURS = {
    "open": ("#1b7f5c", "#ffffff"),
    "zero": ("#f2c14e", "#222222"),
    "blocked": ("#b23a48", "#ffffff"),
    "independent": ("#e8e8e8", "#555555"),
    "opaque": ("#7a7fbd", "#ffffff"),
}
_FONT = "font-family='system-ui, sans-serif' font-size='13'"
_WIDTH, _HEIGHT, _GAP = 128, 44, 4
_MOST = 40  # losses and parts that are drawn


def matrix_svg(matrix: FlowMatrix) -> str:
    """The matrix as one self-contained SVG; hovering over a cell shows its cuts, or the path of its gradient."""
    reasons = fold.reasons(matrix)
    matrix, left_out = fold.shown(matrix, _MOST)
    reasons += [left_out] if left_out else []
    above = fold.common(matrix.parts)
    reasons = [*([f"the parts are those of {above[:-1]}"] if above else []), *reasons]
    left = 24 + 8 * max([4, *map(len, matrix.losses)])
    width = left + len(matrix.parts) * (_WIDTH + _GAP) + 12
    top, line = 40, 19
    height = top + len(matrix.losses) * (_HEIGHT + _GAP) + 16 + line * len(reasons) + 8
    width = max(width, 24 + 7 * max([0, *map(len, reasons)]))
    items = []
    for column, part in enumerate(matrix.parts):
        x = left + column * (_WIDTH + _GAP) + _WIDTH / 2
        items.append(_text(x, 26, part.removeprefix(above), anchor="middle", weight="600"))
    for row, loss in enumerate(matrix.losses):
        y = top + row * (_HEIGHT + _GAP)
        items.append(_text(left - 12, y + _HEIGHT / 2 + 5, loss, anchor="end", weight="600"))
        for column, part in enumerate(matrix.parts):
            items.append(_cell(left + column * (_WIDTH + _GAP), y, matrix, loss, part))
    y = top + len(matrix.losses) * (_HEIGHT + _GAP) + 24
    items += [_text(16, y + line * i, f"‖ {reason}", colour="#444") for i, reason in enumerate(reasons)]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' {_FONT}>"
        f"<rect width='100%' height='100%' fill='#fff'/>{''.join(items)}</svg>"
    )


def _cell(x: float, y: float, matrix: FlowMatrix, loss: str, part: str) -> str:
    cell = matrix[loss, part]
    fill, ink = COLOURS[cell.state]
    why = " ← ".join(cell.path) or "; ".join(map(str, cell.cuts)) or cell.note
    middle = x + _WIDTH / 2
    lines = [_text(middle, y + (19 if cell.norm else 27), cell.state, anchor="middle", colour=ink)]
    if cell.norm:
        lines.append(_text(middle, y + 35, f"{cell.norm:.2e}", anchor="middle", colour=ink))
    box = f"<rect x='{x}' y='{y}' width='{_WIDTH}' height='{_HEIGHT}' rx='5' fill='{fill}'/>"
    return f"<g><title>{escape(f'{loss} → {part}: {why}')}</title>{box}{''.join(lines)}</g>"


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222", weight: str = "400") -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}' fill='{colour}' font-weight='{weight}'>{escape(text)}</text>"


def html_page(title: str, *svgs: str) -> str:
    """One self-contained HTML page of pictures; one that is wider than the window scrolls."""
    figures = "".join(f"<div style='overflow-x:auto;margin:16px 0'>{svg}</div>" for svg in svgs)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<body style='margin:16px;font-family:system-ui,sans-serif'><h1 style='font-size:18px'>{escape(title)}</h1>"
        f"{figures}</body></html>"
    )


def matrix_figure(matrix: FlowMatrix) -> Any:
    """The matrix as a matplotlib figure (TensorBoard takes no SVG)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    matrix, left_out = fold.shown(matrix, _MOST)
    rows, columns = len(matrix.losses), len(matrix.parts)
    figure = Figure(figsize=(1.6 + 1.5 * columns, 0.8 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    for i, loss in enumerate(matrix.losses):
        for j, part in enumerate(matrix.parts):
            fill, ink = COLOURS[matrix[loss, part].state]
            axes.add_patch(Rectangle((j - 0.48, i - 0.45), 0.96, 0.9, color=fill))
            axes.text(j, i, str(matrix[loss, part]), color=ink, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), [part.removeprefix(fold.common(matrix.parts)) for part in matrix.parts])
    axes.set_yticks(range(rows), matrix.losses)
    axes.xaxis.tick_top()
    axes.set_xlabel(left_out)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
