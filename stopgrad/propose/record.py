"""One run of a script to the end of its first cycles: its matrix, and the graph of its values."""

from __future__ import annotations

import ast
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.values import Values
from stopgrad.propose import probe
from stopgrad.propose.probe import Key, Notes
from stopgrad.propose.rewritten import Parts, edited, probed, with_parts
from stopgrad.rewrite.source import execute
from stopgrad.rewrite.steps import Enough
from stopgrad.watch.hooks import overhear
from stopgrad.watch.span import Span
from stopgrad.watch.watch import Watch

RECORD = "record.pickle"
CYCLES = 3  # that are seen at least
MOST_CYCLES = 30  # that an optimiser which has not stepped is waited for
ALWAYS, MOST_SPANS = 2, 12  # whose values are kept: so many of the first, and those that show another loss


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        texts: the source of each file that was edited; without any, all of the script's files are probed.
        losses: that must have been seen before the script is stopped.
        light: probe no more than what is computed.
    """

    script: str
    module: bool = False
    arguments: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    parts: Parts = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    probes: bool = True
    light: bool = False


@dataclass
class Recorded:
    """The values of one span.

    Attributes:
        losses: the vertices of each loss, and of each term of one.
        starts: the names of the parts that begin at a vertex.
        frozen: what has set ``requires_grad`` of a root to False.
        notes: what the probes noted; its recorder is gone.
    """

    values: Values
    losses: dict[str, list[int]]
    starts: dict[int, list[str]]
    frozen: dict[int, Key]
    notes: Notes


@dataclass
class Record:
    """What a run has shown.

    Attributes:
        matrix: states and norms, by loss and part.
        terms: the loss of each term.
        error: what ended the script, in a line; "" where it ended by itself or was stopped.
    """

    matrix: FlowMatrix | None = None
    terms: dict[str, str] = field(default_factory=dict)
    lines: dict[str, tuple[str, int]] = field(default_factory=dict)
    spans: list[Recorded] = field(default_factory=list)
    cycles: int = 0
    error: str = ""
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class Recording(Watch):
    """A watch that measures every cycle, keeps the values of the first ones, and stops the script after them."""

    def __init__(self, losses: Sequence[str], write: Callable[[Record], None]) -> None:
        super().__init__(cycles=sys.maxsize, every=0)
        self.record = Record()
        self._write = write
        self._awaited = set(losses)
        self._told: set[str] = set()
        self._stopped = False

    def after_backward(self, tensors: Any, finished: bool = True) -> None:
        super().after_backward(tensors, finished)
        if self._span is not None:
            self._awaited -= {*self._span.audit.loss_values.values(), *self._span.terms_at}

    def _next_cycle(self) -> None:
        super()._next_cycle()
        waits = any(not known.total for known in self.ledger.optimizers.values()) and self.cycle < MOST_CYCLES
        if self.cycle >= CYCLES and not self._awaited and not waits:
            if self._stopped:  # the script has caught it, and goes on
                self.close()
                self._write(self.finish())
                os._exit(0)
            self._stopped = True
            raise Enough

    def _kept(self, span: Span) -> Recorded | None:
        """The values of a span that shows a loss which no earlier one has shown, or is one of the first."""
        matrix = span.audit.matrix()
        ways = matrix.facts.ways
        if ways is None or len(self.record.spans) >= MOST_SPANS:
            return None
        losses = {name: list(vertices) for name, vertices in ways.losses.items()}
        losses = {term: sorted(vertices) for term, vertices in span.terms_at.items()} | losses
        if not losses.keys() - self._told and len(self.record.spans) >= ALWAYS:
            return None
        self._told |= losses.keys()
        starts = {v: [c for c in matrix.parts if bits & ways.bits[c]] for v, bits in ways.values.starts.items()}
        tensors = {id(t): t for part in span.parts.values() for t in part}.values()
        frozen = {root: probe.frozen[id(t)] for root, t in enumerate(tensors) if id(t) in probe.frozen}
        return Recorded(ways.values, losses, starts, frozen, probe.notes())

    def _end(self) -> None:
        span = self._span
        kept = self._kept(span) if span is not None else None
        super()._end()
        if span is not None and kept is not None:
            homes = {part: {self.home.get(self.key(t), part) for t in tensors} for part, tensors in span.parts.items()}
            names = {part: home.pop() for part, home in homes.items() if len(home) == 1}
            kept.starts = {v: [names.get(c, plain(c)) for c in columns] for v, columns in kept.starts.items()}
            self.record.spans.append(kept)
        probe.forget()

    def finish(self, error: str = "") -> Record:
        """What was seen."""
        record, seen, raw = self.record, self.matrix, self._matrix
        if seen is not None and raw is not None:
            crossings = [part for part in raw.parts if part.startswith("stop.")]
            parts = [*seen.parts, *(plain(part) for part in crossings)]
            cells = seen.told() | {
                (loss, plain(part)): cell for (loss, part), cell in raw.told().items() if part in crossings
            }
            record.matrix = FlowMatrix(parts, cells, seen.losses)
        for kept in record.spans:
            kept.notes.of = None
        record.terms = dict(self.terms)
        record.lines = {name: (file, line) for name, (file, line, _) in self.ledger.losses.items()}
        record.cycles, record.notes, record.error = self.cycle, self.notes, error
        return record


def plain(part: str) -> str:
    """A value that is a part has no name of a boundary."""
    return part.removeprefix("stop.") if "@" in part else part


def _write(record: Record, folder: Path) -> None:
    (folder / RECORD).write_bytes(pickle.dumps(record))


@contextmanager
def _own_gradients() -> Iterator[None]:
    """``torch.autograd.grad`` is asked for tensors, and not for their aliases."""
    original = torch.autograd.grad

    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return original(outputs, probe.own(inputs), *args, **kwargs)

    torch.autograd.grad = grad
    try:
        yield
    finally:
        torch.autograd.grad = original


def record(job: Job, folder: Path) -> None:
    """Run the script in this process, which is its own, leave what it has shown in the folder, and end."""
    files: list[str] = []

    def rewrite(tree: ast.Module, file: str) -> ast.Module:
        files.append(file)
        if file in job.texts:
            return edited(job.texts[file], file, job.parts)
        return probed(tree, file, job.parts, job.light) if job.probes else with_parts(tree, file, job.parts)

    watch, error = Recording(job.losses, lambda made: _write(made, folder)), ""
    watch.record.files = files
    with overhear(watch), _own_gradients():
        try:
            execute(job.script, job.arguments, module=job.module, rewrite=rewrite)
        except (Enough, SystemExit):
            pass
        except BaseException as raised:  # the script's own, of whatever kind: it is told
            traceback.print_exc()
            error = f"{type(raised).__name__}: {raised}".splitlines()[0]
        finally:
            watch.close()
    _write(watch.finish(error), folder)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # threads and workers of the script are of no more use
