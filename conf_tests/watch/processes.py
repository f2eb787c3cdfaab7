"""Scripts in processes that have imported torch already: a run of a small one takes tenths of a second."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from conf_tests.helpers import PROCESSES, Ran


def _run(arguments: list[str], cwd: Path) -> None:
    """Become ``python arguments...``: a script, or ``-m`` and a module."""
    multiprocessing.set_start_method(None, force=True)  # the default again, for the script's own processes
    os.chdir(cwd)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(cwd))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def python(*arguments: object, cwd: Path, seconds: float = 120) -> Ran:
    """``python arguments...`` in the folder ``cwd``, which is made where it is not there; killed after ``seconds``."""
    cwd.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=_run, args=([*map(str, arguments)], cwd))
    process.start()
    process.join(seconds)
    process.kill()
    return Ran(process.exitcode, (cwd / "out").read_text(), (cwd / "err").read_text())


def findings(script: Path, cwd: Path) -> tuple[Ran, list[dict[str, Any]]]:
    """How the script ran under ``stopgrad run``, and what was found; the watch itself has not failed."""
    ran = python("-m", "stopgrad", "run", "--json", "report.json", script, cwd=cwd)
    report = cwd / "report.json"
    assert report.exists(), ran.stderr
    content = json.loads(report.read_text())
    assert not failures(content)
    return ran, content["findings"]


def failures(content: dict[str, Any]) -> list[str]:
    """What a report says of the watch itself: a failure never reaches the script, and must not pass in silence here."""
    return [note for note in content["notes"] if " failed" in note]


def grave(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors and the warnings."""
    return [finding for finding in found if finding["severity"] != "note"]
