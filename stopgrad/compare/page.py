"""The comparison as one HTML file: offline, light and dark, by mouse, keyboard and screen reader.

The file is whole in itself, its plotting library included. Pictures of samples lie in a folder beside it, and load when
they are seen; where the folder is not, the page says which picture is missing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stopgrad.compare.switches import switches
from stopgrad.compare.words import markdown, plain
from stopgrad.flow.drawing import flow_svg
from stopgrad.flow.layout import scale_of
from stopgrad.flow.page import LIGHT, page
from stopgrad.flow.routes import Record

if TYPE_CHECKING:
    from stopgrad.compare import Comparison
    from stopgrad.compare.read import Run

FOLDER = "comparison_files"  # beside the page; so browsers call what belongs to one
MOST_CURVES = 12
MOST_POINTS = 1000  # of a curve
PAGE, PICTURES = 2_800_000, 1_400_000  # characters that a page aims at, and that flow pictures may take of it
VALUE = 12  # characters of a value of a curve
DRAWN = ("loss", "health", "val", "test")
SCRIPTS = ("flow.js", "charts.js", "curves.js", "arms.js", "view.js")


def html_page(comparison: Comparison, samples: Mapping[str, str]) -> str:
    """The page: a template with the comparison as JSON.

    Args:
        samples: by arm, where a picture of its samples lies, seen from the page.
    """
    content = comparison.content
    records = {arm["name"]: record for arm in content["arms"] if (record := comparison.flow_record(arm["name"]))}
    pictures, shown = flow_pictures(records)
    tags = drawn_tags(content)
    data = rounded({**content, "curves": {}}) | {
        "samples": samples,
        "pictures": pictures,
        "picture": shown,
        "switches": switches(comparison, records),
        "undrawn": [tag for tag in content["curves"] if tag not in tags],
    }
    kit = files("stopgrad.compare")

    def read(name: str) -> str:
        return kit.joinpath(name).read_text(encoding="utf-8")

    licence = f"/* uPlot\n{read('uplot/LICENSE.txt')}*/\n"
    scripts = f"{licence}{read('uplot/uPlot.iife.min.js')}\n" + "\n".join(map(read, SCRIPTS))
    style = f"{read('uplot/uPlot.min.css')}\n{read('page.css')}:root.paper {{ color-scheme: light; {LIGHT} }}\n"
    body = read("page.html").replace("{{words}}", escape(markdown(content)), 1)
    template = f"<style>\n{style}</style>\n{body}<script>\n{scripts}</script>\n"
    left = PAGE - len(template) - len(json.dumps(plain(data)))
    data |= curves_by_seed(comparison, tags, left // VALUE)
    return page(f"{content['recipe']}: comparison", template, plain(data))


def flow_pictures(records: Mapping[str, Record]) -> tuple[list[str], dict[str, int]]:
    """The flow pictures, each once, and by arm which is its own: as many as there is room for, from the first on."""
    scale = scale_of(records.values())  # one for all, so that the widths of arms can be compared
    pictures: dict[str, int] = {}
    shown: dict[str, int] = {}
    for name, record in records.items():
        svg = flow_svg(record, scale)
        if svg in pictures or sum(map(len, pictures)) + len(svg) <= PICTURES:
            shown[name] = pictures.setdefault(svg, len(pictures))
    return [*pictures], shown


def drawn_tags(content: Mapping[str, Any]) -> list[str]:
    """The curves that are drawn: declared metrics, losses and what tells of health; all that a script tells."""
    tags = [tag for tag in content["metrics_declared"] if tag in content["curves"]]
    is_script = bool(content["losses"])
    tags += [tag for tag in content["curves"] if tag not in tags and (is_script or tag.startswith(DRAWN))]
    return tags[:MOST_CURVES]


def curves_by_seed(comparison: Comparison, tags: Sequence[str], most: int) -> dict[str, Any]:
    """``curves``: tag -> arm -> the values of each seed, at the steps of one of the ``grids``; every so-manieth point.

    A seed that has no value at a step, because it ended before, has null.

    Args:
        most: values of all curves together, if that leaves each curve twenty.
    """
    by_arm: dict[str, list[Run]] = {arm["name"]: [] for arm in comparison.content["arms"]}
    for run in comparison.found.runs:
        by_arm[run.arm].append(run)
    points = max(20, min(MOST_POINTS, most // max(1, len(tags) * len(comparison.found.runs))))
    grids: dict[tuple[int, ...], int] = {}
    curves: dict[str, dict[str, Any]] = {tag: {} for tag in tags}
    for tag in tags:
        for name, runs in by_arm.items():
            drawn = {run.seed: dict(run.curves[tag]) for run in sorted(runs, key=lambda r: r.seed) if tag in run.curves}
            steps = sorted(set().union(*drawn.values()))
            if not steps:
                continue
            every = -(-len(steps) // points)
            kept = tuple(steps[::-1][::every][::-1])  # the last one among them
            seeds = {seed: [short(values.get(step)) for step in kept] for seed, values in drawn.items()}
            curves[tag][name] = {"grid": grids.setdefault(kept, len(grids)), "every": every, "seeds": seeds}
    return {"grids": [list(steps) for steps in grids], "curves": curves}


def short(value: float | None) -> float | None:
    """Seven digits are all that a float32 has."""
    return None if value is None else float(f"{value:.7g}")


def copy_samples(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Copy each arm's ``samples.png`` into ``folder``, in place of what stood there; by arm, its path from the page."""
    shutil.rmtree(folder, ignore_errors=True)
    copied: dict[str, str] = {}
    for k, arm in enumerate(comparison.content["arms"]):
        if file := comparison.sample(arm["name"]):
            folder.mkdir(exist_ok=True)
            name = f"{k:02}-{re.sub(r'[^A-Za-z0-9_.+-]+', '-', arm['name'])}.png"
            shutil.copyfile(file, folder / name)
            copied[arm["name"]] = f"{folder.name}/{name}"
    return copied


def read_record(file: Path) -> Record | None:
    """The record of a run's flow picture; None where there is none, or it is damaged, or of another version."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        flow_svg(record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record


def rounded(value: Any) -> Any:
    """Floats to five digits: the page shows four."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
