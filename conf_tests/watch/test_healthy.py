"""Healthy training scripts: the run tells no error and no warning, changes not a bit, and shows the true flow.

A script is any file of healthy/ with a line ``# flow: LOSS -> PART, PART; LOSS -> PART``: all losses, and which parts
each of them reaches, by the script's own names. ``# cut: LOSS -> PART`` is what the script keeps a loss from.
``# needs: NAME`` skips it where that cannot be imported, ``# fast`` puts it in every run of the tests.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import tempfile
from pathlib import Path

import pytest

from conf_tests.helpers import Ran
from conf_tests.watch.processes import failures, python

FOLDER = Path(__file__).parent / "healthy"
REACHED = ("open", "zero")


def marked(script: Path, word: str) -> list[str]:
    """What stands behind ``# word:`` in the script, over all such lines."""
    lines = re.findall(rf"^# {word}: (.*)$", script.read_text(), re.M)
    return [item.strip() for line in lines for item in re.split("[,]" if word == "needs" else "[;]", line)]


def pairs(script: Path, word: str) -> dict[str, set[str]]:
    """Loss -> parts, of the script's line."""
    rows = [row.split("->") for row in marked(script, word)]
    return {loss.strip(): {part.strip() for part in parts.split(",")} for loss, parts in rows}


SCRIPTS = [file for file in sorted(FOLDER.rglob("*.py")) if marked(file, "flow")]


def tier(script: Path) -> list[pytest.MarkDecorator]:
    return [pytest.mark.full] + [pytest.mark.sample] * ("\n# fast\n" in script.read_text())


def each(scripts: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("script", [pytest.param(s, id=s.stem, marks=tier(s)) for s in scripts])


@functools.cache
def watched(script: Path) -> tuple[Ran, dict]:
    """How the script ran under ``stopgrad run``, and its report."""
    for module in marked(script, "needs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder, "watched")
        ran = python("-m", "stopgrad", "run", "--json", "report.json", script, cwd=cwd)
        assert ran.returncode == 0, ran.stderr
        content = json.loads((cwd / "report.json").read_text())
        assert not failures(content)
        return ran, content


def cells(report: dict, *states: str) -> dict[str, set[str]]:
    """Loss -> the parts to which it stands in one of these states."""
    rows = report["matrix"].items()
    return {loss: {part for part, cell in row.items() if cell["state"] in states} for loss, row in rows}


@each(SCRIPTS)
def test_not_a_bit_is_changed_and_nothing_is_found(script, tmp_path):
    ran, report = watched(script)
    alone = python(script, cwd=tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert re.search(r"^weights [0-9a-f]{32}\n\Z", alone.stdout, re.M)
    assert ran.stdout == alone.stdout
    assert report["losses"]
    assert [finding for finding in report["findings"] if finding["severity"] != "note"] == []


@each(SCRIPTS)
def test_each_loss_reaches_what_it_trains(script):
    report = watched(script)[1]
    losses = {row["name"] for row in report["losses"] if not row["of"]}  # a term of one has a row of its own too
    assert {loss: parts for loss, parts in cells(report, *REACHED).items() if loss in losses} == pairs(script, "flow")
    assert losses == {*pairs(script, "flow")}


@each(SCRIPTS)
def test_each_optimiser_is_fed_by_a_loss_and_steps_named_parts(script):
    rows = [row for row in watched(script)[1]["optimizers"] if row["steps"]]
    assert {loss for row in rows for loss in row["losses"]} <= {*pairs(script, "flow")}
    for row in rows:
        assert row["losses"], row
        assert "others" not in row["parts"], row


@each([script for script in SCRIPTS if marked(script, "cut")])
def test_each_cut_is_seen(script):
    blocked = cells(watched(script)[1], "blocked")
    for loss, parts in pairs(script, "cut").items():
        assert parts <= blocked.get(loss, set()), loss


def test_the_fast_ones_are_a_part():
    assert 10 <= sum(len(tier(script)) == 2 for script in SCRIPTS) < len(SCRIPTS) / 2
