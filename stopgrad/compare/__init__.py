"""What did the cut change? Run directories compared, arm by arm, in words and with the numbers that they rest on.

    python -m stopgrad compare runs/gan/sweep-TIME

Reads ``result.json``, ``fingerprints.pt`` and TensorBoard's events of each run; needs no recipe and no config.
``read`` finds what there is, ``fingerprint`` and ``difference`` tell where arms part, ``divergence`` which of them went
astray, ``statistics`` what the seeds allow one to say, ``verdict`` decides, ``words``, ``page``, ``picture`` and
``boards`` tell it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stopgrad.compare.files import write_whole
from stopgrad.compare.page import FOLDER, copy_samples, html_page, read_record
from stopgrad.compare.read import Found, find_runs
from stopgrad.compare.verdict import judge
from stopgrad.compare.words import markdown, plain, text_table
from stopgrad.flow.routes import Record

STEP_TIMES = "step_times.json"


@dataclass
class Comparison:
    """A comparison.

    Attributes:
        content: as in ``comparison.json``; docs/comparison.md tells the keys.
        found: the runs that it rests on.
    """

    content: dict[str, Any]
    found: Found

    def __str__(self) -> str:
        return text_table(self.content, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)

    def _repr_markdown_(self) -> str:
        """For a notebook."""
        return markdown(self.content)

    def __getitem__(self, arm: str) -> dict[str, Any]:
        """What is known of one arm."""
        return next(each for each in self.content["arms"] if each["name"] == arm)

    def sample(self, arm: str) -> Path | None:
        """``samples.png`` of the arm's first seed that has one."""
        files = [run.folder / "samples.png" for run in self.found.runs if run.arm == arm and run.finished]
        return next((file for file in files if file.exists()), None)

    def flow_record(self, arm: str) -> Record | None:
        """``flow.json``, from which the flow picture is drawn, of the arm's first seed that has one."""
        records = (read_record(run.folder / "flow.json") for run in self.found.runs if run.arm == arm)
        return next(filter(None, records), None)

    def write(self, folder: Path) -> None:
        """Write ``comparison.json``, ``.md`` and ``.html`` into ``folder``, samples beside them, and TensorBoard's."""
        folder.mkdir(parents=True, exist_ok=True)
        samples = copy_samples(self, folder / FOLDER)
        for name, text in (
            ("comparison.json", json.dumps(plain(self.content), indent=1, allow_nan=False) + "\n"),
            ("comparison.md", markdown(self.content)),
            ("comparison.html", html_page(self, samples)),
        ):
            write_whole(folder / name, text)
        if find_spec("tensorboard") is not None:
            from stopgrad.compare.boards import write_boards

            write_boards(self, folder)


def compare(folders: Sequence[Path], reference: str | None = None) -> Comparison:
    """Compare all runs below ``folders``.

    Args:
        folders: run directories, or directories above them, such as that of a sweep.
        reference: the arm that the others are held against; by default the one that the comparison's config names, or
            whose cuts are the paper's.

    Raises:
        ValueError: nothing to compare, or no such arm; one line.
    """
    found = find_runs(folders)
    measured = [read_step_times(folder / STEP_TIMES) for folder in folders]
    return Comparison(judge(found, reference, next(filter(None, measured), None)), found)


def read_step_times(file: Path) -> dict[str, Any] | None:
    """What benchmarks/arms.py measured, if it did."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
