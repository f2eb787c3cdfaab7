"""Healthy training scripts: the run tells no error and no warning, changes not a bit, and shows the right flow.

A script is any file of healthy/ that has a line ``# flow: LOSS -> PART, PART; LOSS -> PART``: which loss reaches which
part, by the script's own names. ``# needs: NAME`` skips it where that cannot be imported; ``# fast`` puts it in every
run of the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from conf_tests.helpers import PROCESSES, Ran

FOLDER = Path(__file__).parent / "healthy"
REACHED = ("open", "zero")


def marked(script: Path, word: str) -> list[str]:
    """What stands behind ``# word:`` in the script, over all such lines."""
    lines = re.findall(rf"^# {word}: (.*)$", script.read_text(), re.M)
    return [item.strip() for line in lines for item in re.split("[;]" if word == "flow" else "[,]", line)]


SCRIPTS = [file for file in sorted(FOLDER.rglob("*.py")) if marked(file, "flow")]


def tier(script: Path) -> list[pytest.MarkDecorator]:
    return [pytest.mark.full] + [pytest.mark.sample] * ("\n# fast\n" in script.read_text())


def expected(script: Path) -> dict[str, set[str]]:
    """Loss -> the parts that it reaches."""
    pairs = [row.split("->") for row in marked(script, "flow")]
    return {loss.strip(): {part.strip() for part in parts.split(",")} for loss, parts in pairs}


def _run(arguments: list[str], cwd: Path) -> None:
    """Become ``python arguments...``: a script, or ``-m`` and a module."""
    os.chdir(cwd)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def python(*arguments: object, cwd: Path) -> Ran:
    """``python arguments...`` in the folder ``cwd``, by a process that has imported torch already."""
    cwd.mkdir()
    process = PROCESSES.Process(target=_run, args=([*map(str, arguments)], cwd))
    process.start()
    process.join(120)
    process.kill()
    return Ran(process.exitcode, (cwd / "out").read_text(), (cwd / "err").read_text())


@pytest.mark.parametrize("script", [pytest.param(s, id=s.stem, marks=tier(s)) for s in SCRIPTS])
def test_healthy(script, tmp_path):
    for module in marked(script, "needs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    alone = python(script, cwd=tmp_path / "alone")
    assert (alone.returncode, alone.stderr) == (0, alone.stderr)
    assert re.search(r"^weights [0-9a-f]{32}\n\Z", alone.stdout, re.M)

    watched = python("-m", "stopgrad", "run", "--json", "report.json", script, cwd=tmp_path / "watched")
    assert (watched.returncode, watched.stderr) == (0, watched.stderr)
    assert watched.stdout == alone.stdout
    report = json.loads((tmp_path / "watched" / "report.json").read_text())
    assert [finding for finding in report["findings"] if finding["severity"] != "note"] == []
    assert report["losses"]
    assert flow(report) == expected(script)


def flow(report: dict) -> dict[str, set[str]]:
    """Loss -> the parts that it reached, of a report."""
    rows = report["matrix"].items()
    return {loss: {part for part, cell in row.items() if cell["state"] in REACHED} for loss, row in rows}


def test_a_script_of_each_kind_is_fast():
    assert 10 <= sum(len(tier(script)) == 2 for script in SCRIPTS) < len(SCRIPTS) / 2
