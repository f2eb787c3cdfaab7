"""What a run tells: the matrix, what each optimiser steps and on whose gradients, and the findings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from stopgrad.compare.files import write_whole
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.values import place
from stopgrad.watch.findings import SEVERITIES, Finding, findings, raised
from stopgrad.watch.watch import Watch

VERSION = 1  # of the file that --json and --save write


@dataclass(frozen=True)
class LossRow:
    """A loss: where its backward runs, and how often the books saw it; or a term of the loss ``of``."""

    name: str
    file: str
    line: int
    backwards: int
    of: str = ""


@dataclass(frozen=True)
class OptimizerRow:
    """An optimiser: where it was made, its steps in the books, the parts that it holds, and which losses fed it.

    One row may stand for ``count`` optimisers that were made in one line.
    """

    name: str
    kind: str
    file: str
    line: int
    steps: int
    parts: tuple[str, ...]
    losses: tuple[str, ...]
    count: int = 1

    def __str__(self) -> str:
        at = f" ({place(self.file, self.line)})" if self.file else ""
        at += f", {self.count} optimisers," if self.count > 1 else ""
        fed = ", ".join(self.losses) or "no loss"
        return f"{self.name}{at} steps {', '.join(self.parts) or 'nothing'} on {fed}"


@dataclass(frozen=True)
class Report:
    """Everything that one run told.

    Attributes:
        matrix: of the cycles that were measured; None where no loss was.
        cycles: how many cycles there were, and how many of them the books hold.
        findings: errors first.
        notes: what was not seen.
    """

    script: str
    matrix: FlowMatrix | None
    losses: tuple[LossRow, ...]
    optimizers: tuple[OptimizerRow, ...]
    cycles: tuple[int, int]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        watch: Watch,
        script: str = "",
        silenced: Mapping[str, str] | None = None,
        error: BaseException | None = None,
    ) -> Report:
        """What the watch has seen.

        Args:
            silenced: names of findings that are left out, with the reasons.
            error: what ended the script.
        """
        ledger = watch.ledger
        losses = [LossRow(name, file, line, count) for name, (file, line, count) in ledger.losses.items()]
        losses += [LossRow(t, *ledger.losses[of], of) for t, of in watch.terms.items() if of in ledger.losses]
        rows = []
        for key, known in ledger.optimizers.items():
            parts = dict.fromkeys(watch.home.get(p, "others") for p in known.holds)
            fed = dict.fromkeys(loss for (loss, _, owner, _) in ledger.uses if owner == key)
            rows.append(OptimizerRow(known.title, known.kind, known.file, known.line, known.steps, (*parts,), (*fed,)))
        rows = _by_line(rows)
        cycles = watch.cycle + 1, min(watch.cycle + 1, watch.books)
        told = [finding for finding in findings(watch) if finding.name not in (silenced or {})]
        told += raised(error)
        told.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        return cls(script, watch.matrix, tuple(losses), tuple(rows), cycles, tuple(told), tuple(watch.notes))

    @property
    def worst(self) -> str | None:
        """The gravest severity among the findings."""
        return self.findings[0].severity if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "version": VERSION,
            "script": self.script,
            "losses": [vars(row) for row in self.losses],
            "parts": list(self.matrix.parts) if self.matrix else [],
            "matrix": self.matrix.to_dict() if self.matrix else {},
            "optimizers": [
                vars(row) | {"parts": list(row.parts), "losses": list(row.losses)} for row in self.optimizers
            ],
            "cycles": {"seen": self.cycles[0], "books": self.cycles[1]},
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        """For a notebook."""
        from stopgrad.watch.page import notebook_html

        return notebook_html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        printer.text(str(self))

    def __str__(self) -> str:
        if not self.losses:
            return "\n".join(
                ["stopgrad: nothing to report: no backward ran", *(f"note: {note}" for note in self.notes)]
            )
        seen, books = self.cycles
        told = f"{seen} cycle{'s' * (seen != 1)}" + (f", the books hold {books}" if books < seen else "")
        lines = [f"stopgrad: {told}", ""]
        lines += [str(self.matrix)] if self.matrix else ["no loss was measured"]
        lines += ["", *(str(row) for row in self.optimizers if row.steps)]
        lines += [f"note: {note}" for note in self.notes]
        lines += ["", *(str(finding) for finding in self.findings)] if self.findings else ["", "no findings"]
        return "\n".join(lines)


def _by_line(rows: list[OptimizerRow]) -> list[OptimizerRow]:
    """One row for the optimisers that one line made, one after the other or one for each part."""
    found: dict[tuple[str, str, int], OptimizerRow] = {}
    for row in rows:
        known = found.setdefault((row.name, row.file, row.line), row)
        if known is not row:
            parts, losses = (
                (*dict.fromkeys(a + b),) for a, b in ((known.parts, row.parts), (known.losses, row.losses))
            )
            found[row.name, row.file, row.line] = replace(
                known, steps=known.steps + row.steps, parts=parts, losses=losses, count=known.count + 1
            )
    return list(found.values())


_COLOURS = {"error": 31, "warning": 33, "note": 36, "open": 32, "zero": 33, "opaque": 35}


def for_a_terminal(text: str, stream: TextIO) -> str:
    """A report with grades and states in colour, where the stream is a terminal and ``NO_COLOR`` is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    words = r"^(error|warning|note)(?=:)|(?<=  )(open|zero|opaque)(?= \d|  |$)"
    return re.sub(words, lambda met: f"\033[{_COLOURS[met[0]]}m{met[0]}\033[0m", text, flags=re.M)


def save(report: Report, file: Path, force: bool = False) -> None:
    """Write the report for a later ``--check``.

    Raises:
        ValueError: the file is there, and ``force`` was not given.
    """
    if file.exists() and not force:
        raise ValueError(f"--save {file}: is there already; --force replaces it")
    write_whole(file, json.dumps(report.to_dict(), indent=1) + "\n")


def read(file: Path) -> dict[str, Any]:
    """The content of a saved report.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert content["version"] == VERSION
        assert isinstance(content["matrix"], dict)
    except OSError as error:
        raise ValueError(f"--check {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"--check {file}: no flow that --save has written") from None
    return content


REACHED = ("open", "zero")


def changes(saved: dict[str, Any], report: Report) -> list[str]:
    """What a loss reaches now and did not, ``+``, and what it reached and does not now, ``-``; by names, not by lines.

    Raises:
        ValueError: the flow is of another script.
    """
    if Path(saved["script"]).name != Path(report.script).name:
        raise ValueError(f"--check: the flow is of {saved['script']}, this is {report.script}")
    was, now = _reached(saved["matrix"]), _reached(report.to_dict()["matrix"])
    told = [f"- {loss} reaches {part}" for loss, part in sorted(was - now)]
    return told + [f"+ {loss} reaches {part}" for loss, part in sorted(now - was)]


def _reached(matrix: dict[str, Any]) -> set[tuple[str, str]]:
    return {(loss, part) for loss, row in matrix.items() for part, cell in row.items() if cell["state"] in REACHED}
