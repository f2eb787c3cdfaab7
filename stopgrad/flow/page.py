"""What every page has in common: one HTML file that works offline, in light and dark; and a matrix as an HTML table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stopgrad.flow import fold
from stopgrad.flow.ink import COLOURS

if TYPE_CHECKING:
    from stopgrad.flow.audit import audit
    from stopgrad.flow.matrix import FlowMatrix

LIGHT = (
    "--back: #fff; --raised: #f4f6f7; --ink: #1c2326; --soft: #566066; --line: #cfd6da; --accent: #00695f; "
    "--arm: #b84a00; --grey: #a9b2b7; --good: #1b6e4f; --bad: #a8263a; --unsure: #7a5a00; --mark: #b84a00;"
)
DARK = (
    "--back: #14181a; --raised: #1e2427; --ink: #e8edef; --soft: #a7b1b6; --line: #3a4347; --accent: #4fc3b0; "
    "--arm: #ff9d5c; --grey: #5d676c; --good: #62cfa0; --bad: #ff8a98; --unsure: #e5c15a; --mark: #ff9d5c;"
)
# Where notebooks say that they are dark: JupyterLab, VS Code, Colab. They do not follow the system's preference.
_DARK_NOTEBOOKS = ("[data-jp-theme-light=false]", ".vscode-dark", "html[theme=dark]")
_MOST = 40  # losses and parts of a table in a notebook


def page(title: str, template: str, data: Any) -> str:
    """One self-contained HTML page.

    Args:
        template: a ``<style>`` of the page's own, then what its body holds. A script in it finds ``data``.
        data: what JSON can hold.
    """
    style, end, body = template.partition("</style>\n")
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 1180px; padding: 20px 24px 60px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }}
{_common("page.css")}</style>
{style}{end}</head>
<body>
<script type="application/json" id="data">{text}</script>
<script>
{_common("page.js")}</script>
{body}</body>
</html>
"""


def in_notebook(content: str, style: str = "") -> str:
    """HTML for the output of a notebook's cell, in the colours of the notebook; nothing outside of it is styled."""
    light, dark = (" ".join(f"--flow-{name}: {pair[k]};" for name, pair in COLOURS.items()) for k in (0, 1))
    themed = f":is({', '.join(_DARK_NOTEBOOKS)}) .stopgrad"
    rules = f"--back: var(--jp-layout-color0, Canvas); color: var(--ink);\n{_common('page.css')}{style}"
    return (
        f"<style>.stopgrad {{ {LIGHT} }} {themed} {{ {DARK} }}\n"
        f".stopgrad .flow {{ {light} }} {themed} .flow {{ {dark} }}\n.stopgrad {{ {rules}}}</style>\n"
        f'<div class="stopgrad">{content}</div>'
    )


def matrix_table(matrix: FlowMatrix, titles: bool = False) -> str:
    """The matrix as an HTML table, states in words and colours.

    Args:
        titles: the mouse over a cell tells its cuts, or the path of its gradient.
    """
    heads = "".join(f'<th scope="col">{escape(part)}</th>' for part in matrix.parts)
    rows = []
    for loss in matrix.losses:
        cells = []
        for part in matrix.parts:
            cell = matrix[loss, part]
            why = " ← ".join(cell.path) or "; ".join(map(str, cell.cuts)) or cell.note if titles else ""
            title = f' title="{escape(why)}"' if why else ""
            cells.append(f'<td class="{cell.state}"{title}>{escape(str(cell))}</td>')
        rows.append(f'<tr><th scope="row">{escape(loss)}</th>{"".join(cells)}</tr>')
    lines = "\n".join(rows)
    return (
        f'<div class="wide tall"><table class="flow"><thead><tr><td></td>{heads}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def matrix_html(matrix: FlowMatrix, more: str = "") -> str:
    """The matrix and its reasons, for a notebook, and what follows. Of a large one, what is alike is told once."""
    reasons = fold.reasons(matrix)
    shown, left_out = fold.shown(matrix, _MOST)
    return in_notebook(matrix_table(shown, titles=True) + items([*reasons, *filter(None, [left_out])]) + more)


def audit_html(flow: audit) -> str:
    """An audit for a notebook: the matrix, its reasons, and the value flow where it was made with ``draw=True``."""
    if not flow.loss_values:
        return in_notebook("<p>No loss was reported: call a.loss(name, loss) inside the with block.</p>")
    if not flow.draw:
        return matrix_html(flow.matrix())
    from stopgrad.flow.drawing import flow_svg

    return matrix_html(flow.matrix(), flow_svg(flow).figure())


class Svg(str):
    """An SVG that shows itself in a notebook, and is a plain string else."""

    def figure(self) -> str:
        """As part of a page; a picture that is too wide is scrolled, not shrunk until it cannot be read."""
        return f'<figure class="wide" style="margin: 12px 0">{self}</figure>'

    def _repr_html_(self) -> str:
        return in_notebook(self.figure())


def items(texts: Sequence[str]) -> str:
    """An HTML list; nothing where there is nothing."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _common(name: str) -> str:
    return files("stopgrad.flow").joinpath(name).read_text(encoding="utf-8")
