"""A run's report as one self-contained HTML file, and as the output of a notebook's cell."""

from __future__ import annotations

import linecache
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from stopgrad.compare.files import write_whole
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.page import in_notebook, items, matrix_table, page
from stopgrad.flow.values import CutSite, place
from stopgrad.museum import exhibits
from stopgrad.watch.findings import SEVERITIES, Finding, counted
from stopgrad.watch.report import Report

AROUND = 3  # lines of the source before and after the one that is meant
SHOWN = 12  # cells that a cut names
_MAGIC = re.compile(r"get_ipython\(\)\.run_line_magic\('(\w+)', '(.*)'\)")  # what IPython makes of %name
DENSE = 400  # cells from which on the table is set small


def write(report: Report, file: Path) -> None:
    """Write the page, all of it or nothing."""
    write_whole(file, html_page(report))


def html_page(report: Report) -> str:
    """The page: everything as it stands, and a script that tells of the cell that has the focus."""
    style, end, script = _template()
    content = f"<header>{_head(report)}</header>\n<main>\n{_sections(report, live=True)}</main>\n"
    data = _cells(report) if report.matrix else {}
    return page(f"{report.script}: gradients", style + end + content + (script if data else ""), data)


def notebook_html(report: Report) -> str:
    """The same without a script, for the output of a cell."""
    style = _template()[0].removeprefix("<style>\n")
    return in_notebook(_head(report) + _sections(report, live=False), style)


def _template() -> tuple[str, str, str]:
    return files("stopgrad.watch").joinpath("page.html").read_text(encoding="utf-8").partition("</style>\n")


def _head(report: Report) -> str:
    seen, books = report.cycles
    cycles = counted(seen, "cycle") + (f", the books hold {books}" if books < seen else "")
    about = [cycles, f"torch {torch.__version__}", f"{datetime.now():%Y-%m-%d %H:%M}"]
    title = f"{escape(report.script)}: what its gradients do"
    return f'<h1>{title}</h1><p class="soft">{" · ".join(about)}</p>{_sum(report)}'


def _sum(report: Report) -> str:
    """What it comes to, in a line."""
    count = Counter(finding.severity for finding in report.findings)
    if not report.losses and not count:
        return '<p class="sum">Nothing to report: no backward ran.</p>'
    told = [f'<span class="{s}">{counted(count[s], s)}</span>' for s in SEVERITIES if count[s]]
    if count["error"] or count["warning"]:
        return f'<p class="sum">{", ".join(told)}</p>'
    cycles = counted(report.cycles[0], "cycle")
    more = f", {told[0]}" if told else ""
    return f'<p class="sum"><span class="healthy">Healthy</span>: no error and no warning in {cycles}{more}.</p>'


def _sections(report: Report, live: bool) -> str:
    """All that lies under the head.

    Args:
        live: a script will tell of the cells; without it, the mouse over a cell does.
    """
    found = []
    if report.findings:
        found += ["<h2>Findings</h2>", *(_finding(finding) for finding in report.findings)]
    if report.matrix:
        found.append("<h2>Which loss reaches what</h2>")
        table = matrix_table(report.matrix, titles=not live)
        if len(report.matrix) > DENSE:
            table = table.replace('class="flow"', 'class="flow dense"', 1)
        if live:
            how = "Choose a cell, by mouse or with the arrow keys, to read where its gradient was stopped."
            table += f'\n<p id="cell" role="status" aria-live="polite">{how}</p>'
        found += [table, *_cuts(report.matrix)]
    if report.optimizers:
        rows = [
            (
                f"{row.name} × {row.count}" if row.count > 1 else row.name,
                f"{row.kind}, {place(row.file, row.line)}" if row.file else row.kind,
                str(row.steps),
                ", ".join(row.parts) or "nothing",
                ", ".join(row.losses) or "no loss",
            )
            for row in report.optimizers
        ]
        heads = ("optimiser", "class, made at", "steps", "it steps", "on the gradients of")
        found += ["<h2>Optimisers</h2>", _table(heads, rows)]
    if report.losses:
        rows = [
            (row.name, place(row.file, row.line), f"a term of {row.of}" if row.of else str(row.backwards))
            for row in report.losses
        ]
        found += ["<h2>Losses</h2>", _table(("loss", "backward at", "backwards in the books"), rows)]
    if report.notes:
        found += ["<h2>What was not seen</h2>", items(report.notes)]
    return "\n".join(found) + "\n"


def _finding(finding: Finding) -> str:
    known = exhibits().get(finding.name)
    name, title = escape(finding.name), f": {escape(known.title)}" if known else ""
    how = f"<br>See it happen, and mended: <code>python -m stopgrad museum {name}</code>" if known else ""
    fix = "" if finding.fix.endswith(f"museum {finding.name}") else finding.fix
    label = "To do" if finding.severity == "note" else "Fix"
    return (
        f'<section class="finding {finding.severity}">'
        f'<h3><span class="badge">{finding.severity}</span> {escape(finding.message)}</h3>'
        + excerpt(finding.file, finding.line)
        + (f"<p><strong>{label}</strong>: {escape(fix)}</p>" if fix else "")
        + f'<p class="soft"><code>{name}</code>{title}{how}</p></section>'
    )


def excerpt(file: str, line: int, around: int = AROUND) -> str:
    """The line of a file among those around it, as HTML; "" where it cannot be read."""
    lines = linecache.getlines(file)
    if not 1 <= line <= len(lines):
        return f'<p class="soft">{escape(place(file, line))}</p>' if file else ""
    first = max(1, line - around)
    texts = [_MAGIC.sub(r"%\1 \2", text) for text in lines[first - 1 : line + around]]
    texts = textwrap.dedent("".join(texts)).splitlines()
    told = []
    for number, text in enumerate(texts, first):
        tag, sign = ("mark", "▸") if number == line else ("span", " ")
        told.append(f"<{tag}><i>{sign} {number}</i><b>{escape(text)}\n</b></{tag}>")
    at = escape(place(file, line))
    return f'<figure class="source"><figcaption>{at}</figcaption><pre>{"".join(told)}</pre></figure>'


def _sites(matrix: FlowMatrix) -> dict[CutSite, list[tuple[str, str]]]:
    """Each cut with the cells that it lies before; those that it stops come first, then in the order of the source."""
    found: dict[CutSite, list[tuple[str, str]]] = {}
    stops: set[CutSite] = set()
    for key, cell in matrix.told().items():
        for cut in cell.cuts:
            found.setdefault(cut, []).append(key)
        stops.update(cell.cuts if cell.state == "blocked" else ())
    return dict(sorted(found.items(), key=lambda item: (item[0] not in stops, item[0].file, item[0].line)))


def _cuts(matrix: FlowMatrix) -> Iterable[str]:
    sites = _sites(matrix)
    if not sites:
        return
    yield "<h2>Where gradients are stopped</h2>"
    for number, (cut, keys) in enumerate(sites.items()):
        stops = [key for key in keys if matrix[key].state == "blocked"]
        beside = [key for key in keys if matrix[key].state != "blocked"]
        told = [f"stops {_arrows(stops)}"] if stops else []
        told += [f"{_arrows(beside)} has another way"] if beside else []
        yield (
            f'<section class="cut" id="cut-{number}" tabindex="-1"><h3>{escape(str(cut))}</h3><p>{"; ".join(told)}</p>'
            f"{excerpt(cut.file, cut.line)}</section>"
        )


def _arrows(keys: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(f"{escape(loss)} → {escape(part)}" for loss, part in keys[:SHOWN]) + more


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(text)}</td>" for text in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="wide"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(report: Report) -> dict[str, Any]:
    """What the page's script tells of the cells: each text once."""
    matrix = report.matrix
    assert matrix is not None
    texts: dict[str, int] = {}
    cuts = {cut: number for number, cut in enumerate(_sites(matrix))}
    rows, columns = ({name: i for i, name in enumerate(names)} for names in (matrix.losses, matrix.parts))
    cells: dict[str, Any] = {}
    for (loss, part), cell in matrix.told().items():
        words = {"path": " ← ".join(cell.path), "note": cell.note, "died": ", ".join(cell.died)}
        told: dict[str, Any] = {key: texts.setdefault(text, len(texts)) for key, text in words.items() if text}
        if cell.cuts:
            told["cuts"] = [cuts[cut] for cut in cell.cuts]
        if cell.norm:
            told["norm"] = cell.norm if math.isfinite(cell.norm) else str(cell.norm)
        cells[f"{rows[loss]} {columns[part]}"] = told
    lines = {row.name: place(row.file, row.line) for row in report.losses}
    return {
        "losses": matrix.losses,
        "lines": [lines.get(loss, "") for loss in matrix.losses],
        "parts": matrix.parts,
        "cells": cells,
        "cuts": [str(cut) for cut in cuts],
        "texts": list(texts),
    }
