"""The very step at which two arms part: both run again, with a fingerprint after every step of the gap.

A run says itself how it is run again: ``replay`` in its ``result.json`` holds ``cwd`` and ``arguments`` for Python, in
which ``{first}``, ``{last}`` and ``{folder}`` stand for the steps and for where the fingerprints go. Training is
deterministic, so the run again is the run; where it is not, the comparison says so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stopgrad.compare.read import Run

if TYPE_CHECKING:
    from stopgrad.compare import Comparison


def replay(comparison: Comparison, tell: Callable[[str], Any] = print) -> int:
    """Run again what is needed to know each arm's first step exactly; how many runs that took.

    Raises:
        ValueError: a run cannot be run again; one line.
    """
    runs = {(run.arm, run.seed): run for run in comparison.found.runs}
    windows: dict[tuple[str, int], tuple[int, int]] = {}
    for arm in comparison.content["arms"]:
        first = arm["first_difference"]
        if first and not first["exact"]:
            for name in (arm["name"], comparison.content["reference"]):
                low, high = windows.get((name, first["seed"]), (first["after"], first["step"]))
                windows[name, first["seed"]] = (min(low, first["after"]), max(high, first["step"]))
    for key, (low, high) in windows.items():
        tell(f"replay: {runs[key].folder}, steps {low} to {high}")
        run_again(runs[key], low, high)
    return len(windows)


def run_again(run: Run, first: int, last: int) -> None:
    """Leave fingerprints of every step from ``first`` to ``last`` in the run's ``replay/``."""
    command = run.result.get("replay")
    if not command:
        raise ValueError(f"{run.folder}: its result.json holds no replay command")
    values = {"{first}": str(first), "{last}": str(last), "{folder}": str((run.folder / "replay").resolve())}
    arguments = command["arguments"]
    for name, value in values.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=command["cwd"], capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"{run.folder}: cannot be run again: {error}") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{run.folder}: cannot be run again: {why}")
