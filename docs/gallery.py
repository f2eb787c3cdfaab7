"""docs/museum/gallery.md: every finding and exhibit, with a picture of its flow, broken and mended.

    python docs/gallery.py      run all exhibits, as ``python -m stopgrad run`` does, and write it: two minutes

The pictures are drawn where the broken script's flow is not the mended one's; elsewhere the words say what is wrong.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from stopgrad.flow.audit import audit
from stopgrad.flow.drawing import flow_svg
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.museum import Exhibit, exhibits
from stopgrad.rewrite.source import execute
from stopgrad.watch import span
from stopgrad.watch.findings import Finding
from stopgrad.watch.hooks import overhear
from stopgrad.watch.report import Report
from stopgrad.watch.watch import Watch

MUSEUM = Path(__file__).parent / "museum"
PAGE, PICTURES = MUSEUM / "gallery.md", MUSEUM / "pictures"


@dataclass(frozen=True)
class Seen:
    """What one script did, watched.

    Attributes:
        svg: its flow, or "" where no loss was followed.
        reach: the same in words.
        findings: what ``run`` says of it.
        error: what it ended with, or "".
    """

    svg: str
    reach: str
    findings: list[Finding]
    error: str


def seen(exhibit: Exhibit, *, fixed: bool) -> Seen:
    """Run one script, from the seed 0."""
    drawn: list[audit] = []

    def drawing(parts: Any) -> audit:
        drawn.append(audit(parts, draw=True))
        return drawn[-1]

    torch.manual_seed(0)
    watch, error = Watch(), None
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / f"{exhibit.name}.py"
        script.write_text(exhibit.script(fixed=fixed))
        with patch.object(span, "audit", drawing), overhear(watch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                execute(str(script), [], module=False)
            except Exception as raised:  # whatever an exhibit shows
                error = raised
            finally:
                watch.close(ended=error is None or isinstance(error, AssertionError))
        report = Report.of(watch, str(script), {}, error)
        most = max(drawn, key=lambda each: len(each.loss_values), default=None)
        svg = flow_svg(most) if most is not None and most.loss_values else ""
        bare = partial(re.sub, re.escape(folder) + "/", "")
    findings = [replace(f, message=bare(f.message), fix=bare(f.fix), file=bare(f.file)) for f in report.findings]
    return Seen(bare(svg), reach(report.matrix), findings, f"{type(error).__name__}: {error}" if error else "")


def reach(matrix: FlowMatrix | None) -> str:
    """What a picture shows, for who cannot see it: ``d_loss reaches G, D; g_loss reaches G``."""
    found = []
    for loss in () if matrix is None else matrix.losses:
        parts = [part for part in matrix.parts if matrix[loss, part].state == "open"]
        found.append(f"{loss} reaches {', '.join(parts) or 'nothing'}")
    return "; ".join(found)


def both(name: str) -> tuple[Seen, Seen]:
    """An exhibit, broken and fixed; in silence."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return seen(exhibits()[name], fixed=False), seen(exhibits()[name], fixed=True)


def section(exhibit: Exhibit, broken: Seen, mended: Seen) -> str:
    """An exhibit's part of the page."""
    said = [finding for finding in broken.findings if finding.name == exhibit.finding]
    parts = [f"### [{exhibit.title}](../../stopgrad/museum/exhibits/{exhibit.name}.md)", exhibit.summary]
    parts += (
        [f"```\n{filled(str(finding))}\n```" for finding in said] if exhibit.silent else [exhibit.sections["Message"]]
    )
    if pictures(exhibit, broken, mended):
        cells = []
        for state, each in (("broken", broken), ("mended", mended)):
            picture = f"![{state}: {each.reach}](pictures/{exhibit.name}-{state}.svg)"
            cells.append(picture if each.svg else "no backward came to be")
        parts.append(f"| broken | mended |\n|---|---|\n| {cells[0]} | {cells[1]} |")
    return "\n\n".join(parts) + "\n"


def filled(text: str) -> str:
    """Lines of a width that a page has."""
    return "\n".join(
        textwrap.fill(line, 96, initial_indent=" " * 4 * (i > 0), subsequent_indent=" " * 4)
        for i, line in enumerate(map(str.strip, text.splitlines()))
    )


def pictures(exhibit: Exhibit, broken: Seen, mended: Seen) -> dict[str, str]:
    """Its pictures by the names of their files; none where both would show the same."""
    if broken.svg == mended.svg or broken.reach == mended.reach:
        return {}
    drawn = {"broken": broken.svg, "mended": mended.svg}
    return {f"{exhibit.name}-{state}.svg": svg for state, svg in drawn.items() if svg}


def page(of: Mapping[str, tuple[Seen, Seen]]) -> str:
    silent = {name: exhibit.silent for name, exhibit in exhibits().items()}
    lines = [
        "# Every finding and exhibit, broken and mended",
        "",
        "What `python -m stopgrad run` says of each silent failure, and torch of the others; and where the flow of",
        "gradients is what differs, its picture: of the script with the fault, and without. Made by",
        "`python docs/gallery.py`, which runs the scripts. [The museum](index.md) lists them,",
        "[run](../run.md#findings) tells of the findings.",
    ]
    for heading, room in (("Findings", True), ("Failures with a message", False)):
        lines += ["", f"## {heading}", ""]
        lines += ["\n".join(section(exhibits()[name], *pair) for name, pair in of.items() if silent[name] is room)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page and its pictures. A process for each exhibit, since some change what is global."""
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        of = dict(zip(exhibits(), pool.map(both, exhibits(), chunksize=1), strict=True))
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        old.unlink()
    for name, pair in of.items():
        for file, svg in pictures(exhibits()[name], *pair).items():
            (PICTURES / file).write_text(svg)
    PAGE.write_text(page(of))


if __name__ == "__main__":
    main()
