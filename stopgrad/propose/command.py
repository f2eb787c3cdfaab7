"""``python -m stopgrad propose SCRIPT --not LOSS:PART``: the smallest set of edits, tried before it is told."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stopgrad.compare.files import write_whole
from stopgrad.flow.flows import Cell
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.propose.edits import Edit, Source
from stopgrad.propose.graph import Flow
from stopgrad.propose.options import add_options
from stopgrad.propose.process import recorded
from stopgrad.propose.record import Job, Record
from stopgrad.propose.solve import Found, Proposal, Question
from stopgrad.propose.wishes import ValuePart, Wishes, values_among
from stopgrad.rewrite.options import with_further
from stopgrad.watch.options import writable
from stopgrad.watch.run import check_script, script_file

TRIED = 3  # of equal answers, by a run each
TOLD = 8  # of equal answers
REACHED = ("open", "zero")


def propose(options: argparse.Namespace) -> int:
    """Print the smallest set of edits that meets the wishes; 0 if there is one or none is needed, else 1.

    Raises:
        ValueError: bad input, or a script that shows nothing.
    """
    options = with_further(options, "propose", add_options)
    check_script(options)
    writable(json=options.json)
    wishes = Wishes.of(options.apart, options.reach, options.contract)
    values = values_among(wishes.parts, script_file(options))
    script = options.script if options.module else os.path.abspath(options.script)
    job = Job(script, options.module, tuple(options.arguments), tuple(wishes.losses))
    runs = Runs(job, values, options.timeout)
    record = runs.probed()
    study = Study(runs, record, wishes)
    told = study.tell()
    if options.json:
        write_whole(Path(options.json), json.dumps(told.to_dict(runs.sources), indent=1) + "\n")
    print(told.text)
    if options.write and told.answer is not None and told.verified:
        files = {edit.file for edit in told.answer.edits}
        for file in sorted(files):
            runs.sources[file].write(told.answer.edits)
        print(f"\nwritten: {', '.join(map(os.path.relpath, sorted(files)))}")
    return 0 if told.met or told.answer is not None else 1


class Runs:
    """Runs of one script, each in a process of its own."""

    def __init__(self, job: Job, values: Sequence[ValuePart], timeout: float) -> None:
        self._values, self._timeout = values, timeout
        self._job = replace(job, parts=self._parts({}))
        self.sources: dict[str, Source] = {}
        self.count = 0

    def _parts(self, lines: dict[ValuePart, int]) -> dict[str, list[tuple[int, str, str]]]:
        parts: dict[str, list[tuple[int, str, str]]] = {}
        for value in self._values:
            parts.setdefault(value.file, []).append((lines.get(value, value.line), value.variable, value.name))
        return parts

    def probed(self) -> Record:
        """The script as it stands, every value of it followed.

        Raises:
            ValueError: it showed nothing that could be measured.
        """
        record = self._run(self._job)
        if record.error and not self._shows(record):
            record = self._run(replace(self._job, light=True))
        if not self._shows(record):
            reason = f"it ended with {record.error}" if record.error else "no backward of it was seen"
            raise ValueError(f"{self._job.script}: nothing was measured: {reason}")
        self.sources = {file: Source(file) for file in record.files}
        return record

    @staticmethod
    def _shows(record: Record) -> bool:
        return record.matrix is not None and bool(record.spans)

    def tried(self, edits: Sequence[Edit]) -> Record:
        """The script with these edits."""
        texts = {
            file: source.with_edits(edits).decode()
            for file, source in self.sources.items()
            if any(edit.file == file for edit in edits)
        }
        lines = {}
        for value in self._values:
            source = self.sources.get(value.file)
            if source is not None:
                lines[value] = source.line_of(value.line, value.variable, edits)
        try:
            return self._run(replace(self._job, texts=texts, parts=self._parts(lines), probes=False))
        except ValueError as error:  # it did not end, or ended without a word
            return Record(error=str(error))

    def _run(self, job: Job) -> Record:
        self.count += 1
        try:
            return recorded(job, self._timeout)
        except TimeoutError:
            raise ValueError(
                f"{job.script}: had not shown {', '.join(job.losses)} after {self._timeout:g} s; --timeout SECONDS"
            ) from None


@dataclass
class Told:
    """What is told at the end.

    Attributes:
        met: nothing is to be done.
        answer: the edits.
        equal: other smallest sets, with whether each was tried.
    """

    text: str
    met: bool = False
    answer: Proposal | None = None
    verified: bool = False
    equal: list[tuple[Proposal, bool]] = field(default_factory=list)

    def to_dict(self, sources: dict[str, Source]) -> dict[str, Any]:
        return {
            "edits": [] if self.answer is None else _edits(self.answer, sources),
            "verified": self.verified,
            "equal": [_edits(proposal, sources) for proposal, _ in self.equal],
            "equal_verified": [tried for _, tried in self.equal],
            "met": self.met,
            "text": self.text,
        }


def _edits(proposal: Proposal, sources: dict[str, Source]) -> list[dict[str, Any]]:
    return [
        {
            "file": edit.file,
            "line": edit.line,
            "kind": edit.kind,
            "value": edit.value,
            "diff": sources[edit.file].diff([edit]),
        }
        for edit in proposal.edits
    ]


class Study:
    """One question, from what was recorded to what is told."""

    def __init__(self, runs: Runs, record: Record, wishes: Wishes) -> None:
        assert record.matrix is not None
        self._runs, self._record = runs, record
        self._before = states(record)
        matrix = record.matrix
        self.apart, self.reach = wishes.cells(matrix.losses, matrix.parts)
        self._barred = [cell for cell in self.apart if self._before[cell] in REACHED]
        self._wanted = [cell for cell in self.reach if self._before[cell] != "open"]
        self._keep = [c for c, state in self._before.items() if state == "open" and c not in self.apart]

    def tell(self) -> Told:
        if not self._barred and not self._wanted:
            return Told("nothing is to be done: it is so already\n\n" + str(self._record.matrix), met=True)
        matrix = self._record.matrix
        assert matrix is not None
        for loss, part in (*self.apart, *self.reach):
            if self._before[loss, part] == "opaque":
                return Told(f"none: it cannot be told whether {loss} reaches {part}: {matrix[loss, part].note}")
        unseen = [c for c in self._barred if not Flow(self._record.spans).reaches(*c)]
        if unseen:
            loss, part = unseen[0]
            return Told(
                f"none: {loss} reaches {part} on a way that was not followed (a custom Function, another thread)"
            )
        found = Question(self._record, self._runs.sources, self.apart, self.reach, self._keep).answer()
        if found.proposals and not found.proposals[0].edits:
            zero = ", ".join(f"{loss} -> {part}" for loss, part in self._wanted)
            return Told(f"none: no cut keeps the gradient away: it arrives, and is zero: {zero}")
        tried: list[tuple[Proposal, Record | None, str]] = []
        answer = None
        for proposal in found.proposals[: 2 * TRIED]:
            after = self._runs.tried(proposal.edits)
            wrong = self._wrong(proposal, after)
            tried.append((proposal, after, wrong))
            if not wrong and answer is None:
                answer = proposal, after
            if sum(not wrong for *_, wrong in tried) >= TRIED:
                break
        if answer is None:
            return Told("\n".join(["none", *self._none(found, tried)]))
        return self._told(found, answer[0], answer[1], tried)

    def _wrong(self, proposal: Proposal, after: Record) -> str:
        """What a run with the edits shows that is not as wished; "" where all is."""
        if after.matrix is None:
            return f"with it, nothing was measured: {after.error}"
        now = states(after)
        closed = [(cell, ("blocked", "independent")) for cell in self.apart]
        opened = [(cell, ("open",)) for cell in (*self.reach, *self._must_stay)]
        for cell, wanted in (*closed, *opened):
            loss, part = cell
            state = now.get(cell, "not there")
            if cell not in now and loss in self._record.terms and part in after.matrix.parts and wanted[0] == "blocked":
                continue  # a term that carries no gradient has no row
            if state not in wanted:
                return f"with it, {loss} -> {part} is {state}"
        if after.error and not self._record.error:
            return f"with it, the script ends with {after.error}"
        return ""

    @cached_property
    def _must_stay(self) -> list[Cell]:
        flow = Flow(self._record.spans)
        return [cell for cell, on in flow.kept(self._barred, self._keep, self._record.terms).items() if on]

    def _none(self, found: Found, tried: Sequence[tuple[Proposal, Record | None, str]]) -> list[str]:
        lines = [found.why] if found.why else []
        for proposal, _, wrong in tried:
            lines.append(f"  {'; '.join(map(str, proposal.edits))}: {wrong}")
        for loss in dict.fromkeys(loss for loss, _ in self._barred):
            if tried and all(
                cell in self.apart for cell, state in self._before.items() if cell[0] == loss and state == "open"
            ):
                lines.append(f"{loss} would reach nothing at all: leave its backward out")
        return lines

    def _told(
        self, found: Found, answer: Proposal, after: Record, tried: Sequence[tuple[Proposal, Record | None, str]]
    ) -> Told:
        sources = self._runs.sources
        lines = [str(edit) for edit in answer.edits]
        lines += [""] + [sources[file].diff(answer.edits).rstrip() for file in sorted({e.file for e in answer.edits})]
        lines += ["", "measured with it:", *self._effects(after)]
        if answer.weakens:
            lines += [f"  by fewer ways than before: {', '.join(f'{a} -> {b}' for a, b in answer.weakens)}"]
        if len(answer.edits) > 1 or not found.proven:
            count = len(answer.edits)
            lines += [
                "",
                f"{count} edits: no {'smaller set' if count > 2 else 'single one'} does it"
                if found.proven
                else f"{count} edits: the smallest that was found; the search was not exhaustive",
            ]
        good = [p for p, _, wrong in tried if not wrong]
        bad = [p for p, _, wrong in tried if wrong]
        equal = [(p, p in good) for p in found.proposals if p is not answer and p not in bad]
        if equal:
            lines += ["", f"as small{', and tried' if all(t for _, t in equal) else ''}:"]
            for proposal, is_tried in equal[:TOLD]:
                mark = "" if is_tried else "  (not tried)"
                lines.append(f"  {'; '.join(map(str, proposal.edits))}{mark}")
            more = len(equal) - TOLD
            lines += [f"  and {more} more: --json has all"] if more > 0 else []
        return Told("\n".join(lines), answer=answer, verified=True, equal=equal)

    def _effects(self, after: Record) -> list[str]:
        now = states(after)
        cells = list(dict.fromkeys([*self._before, *now]))
        changed = [c for c in cells if self._before.get(c) != now.get(c)]
        lines = []
        for cell in changed:
            was, is_now = _cell(self._record, cell, self._before), _cell(after, cell, now)
            lines.append(f"  {cell[0]} -> {cell[1]}: {was} -> {is_now}")
        left = len(cells) - len(changed)
        return [*lines, f"  the other {f'{left} cells are' if left > 1 else 'cell is'} as before"] if left else lines


def _cell(record: Record, cell: Cell, known: dict[Cell, str]) -> str:
    if cell not in known:
        return "not there"
    matrix: FlowMatrix | None = record.matrix
    return str(matrix[cell]) if matrix is not None and known[cell] == matrix[cell].state else known[cell]


def states(record: Record) -> dict[Cell, str]:
    """The state of each cell. Of a term and a value, or boundary, it is read from the values."""
    assert record.matrix is not None
    found = {cell: record.matrix[cell].state for cell in record.matrix}
    flow = Flow(record.spans)
    for loss in record.terms:
        for part in record.matrix.parts:
            if (loss, part) in found and ("@" in part or part.startswith("stop.")):
                found[loss, part] = "open" if flow.reaches(loss, part) else "blocked"
    return found
