"""``python -m stopgrad propose`` asked in a process, and what it answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf_tests.watch.processes import python


@dataclass
class Said:
    """Exit status, what was printed, what went wrong, and the JSON."""

    status: int | None
    out: str
    err: str
    json: dict[str, Any]

    @property
    def lines(self) -> list[set[int]]:
        """The lines of the answer, and of each equal one."""
        return [{edit["line"] for edit in edits} for edits in (self.json["edits"], *self.json["equal"])]


def propose(script: Path, *arguments: str) -> Said:
    """Asked in the folder of the script; arguments of the script's own come after ``--``."""
    answer = script.parent / "answer.json"
    answer.unlink(missing_ok=True)
    ran = python("-m", "stopgrad", "propose", "--json", "answer.json", script.name, *arguments, cwd=script.parent)
    return Said(ran.returncode, ran.stdout, ran.stderr, json.loads(answer.read_text()) if answer.exists() else {})
