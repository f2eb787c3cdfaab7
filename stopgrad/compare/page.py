"""The comparison as one self-contained HTML file: offline, light and dark, by mouse, keyboard and screen reader."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from stopgrad.compare.words import markdown, plain
from stopgrad.flow.page import page

if TYPE_CHECKING:
    from stopgrad.compare import Comparison

POINTS = 120  # of a curve
MOST_CURVES = 12
DRAWN = ("loss", "health", "val", "test")


def html_page(comparison: Comparison) -> str:
    """The page: a template with the comparison as JSON, and the samples of each arm's first seed as pictures."""
    content = comparison.content
    declared = content["metrics_declared"]
    tags = [*(tag for tag in declared if tag in content["curves"])]
    is_script = bool(content["losses"])  # all that a script tells is drawn
    tags += [tag for tag in content["curves"] if tag not in tags and (is_script or tag.startswith(DRAWN))]
    curves = {tag: {arm: thin(c) for arm, c in content["curves"][tag].items()} for tag in tags[:MOST_CURVES]}
    data = {**content, "curves": curves, "samples": samples(comparison)}
    template = files("stopgrad.compare").joinpath("page.html").read_text(encoding="utf-8")
    own = template.replace("{{words}}", escape(markdown(content)), 1)
    return page(f"{content['recipe']}: comparison", own, plain(rounded(data)))


def thin(curve: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """At most ``POINTS`` points of a curve, the last one among them."""
    every = max(1, -(-len(curve["steps"]) // POINTS))
    return {key: values[::-1][::every][::-1] for key, values in curve.items()}


def samples(comparison: Comparison) -> dict[str, str]:
    """``samples.png`` by arm, as data URLs."""
    return {
        arm["name"]: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
        for arm in comparison.content["arms"]
        if (file := comparison.sample(arm["name"]))
    }


def rounded(value: Any) -> Any:
    """Floats to five digits: the page shows four."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
