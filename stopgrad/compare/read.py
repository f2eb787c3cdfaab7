"""Run directories: what can be read of them, and what cannot, with the reason."""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stopgrad.compare.fingerprint import FILE, Fingerprints
from stopgrad.compare.tags import logged

NEEDED = {"recipe": str, "arm": str, "seed": int, "status": str, "metrics": dict}
UNDRAWN = ("flow/", "epoch", "hp_metric", "comparison/")
Curve = list[tuple[int, float]]


@dataclass
class Run:
    """One run directory: an arm under one seed. Its files are read when they are asked for."""

    folder: Path
    arm: str
    seed: int
    result: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.result["status"] == "finished"

    @property
    def metrics(self) -> dict[str, float]:
        return self.result["metrics"]

    @cached_property
    def fingerprints(self) -> Fingerprints | None:
        """The run's own, with those of a replay between them."""
        try:
            own = Fingerprints.load(self.folder / FILE)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.notes.append(f"no fingerprints: {error}")
            return None
        try:
            return own.merged(Fingerprints.load(self.folder / "replay" / FILE))
        except FileNotFoundError:
            return own
        except ValueError as error:
            self.notes.append(f"replay: {error}")
            return own

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """(batches done, value) by tag, from the run's TensorBoard events, or else its ``metrics.csv``.

        Lightning counts batches from 0, so that what it logs at 299 is of the network after 300; but what it logs as
        the run ends, at 300, is of the same.
        """
        found: dict[str, dict[int, float]] = {}
        for tag, step, value in self._logged():
            if not tag.startswith(UNDRAWN):
                found.setdefault(tag, {})[min(step + 1, self.result.get("steps") or step + 1)] = value
        return {tag: sorted(points.items()) for tag, points in sorted(found.items())}

    def _logged(self) -> Iterator[tuple[str, int, float]]:
        """(tag, step, value) as logged."""
        if (table := self.folder / "csv" / "metrics.csv").exists():
            yield from rows(table)
        files = sorted(self.folder.glob("events.out.tfevents.*"))
        if files and find_spec("tensorboard") is None:
            self.notes.append("no curves: they need tensorboard; pip install 'stopgrad[compare]'")
            return
        for file in files:
            try:
                yield from ((logged(tag), step, value) for tag, step, value in scalars(file))
            except ValueError as error:
                self.notes.append(str(error))


def rows(file: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every number in Lightning's ``metrics.csv``."""
    with open(file, newline="") as table:
        for row in csv.DictReader(table):
            yield from ((tag, int(row["step"]), float(v)) for tag, v in row.items() if tag != "step" and v)


def scalars(file: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in an event file, up to where it is damaged.

    A record is a length (8 bytes), a checksum (4), the event, a checksum (4); pictures are skipped unread.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    with open(file, "rb") as stream:
        while header := stream.read(12):
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else -1
            data = stream.read(size) if 0 <= size < 1 << 31 else b""
            if size < 0 or len(data) < size or len(stream.read(4)) < 4:
                raise ValueError(f"{file.name}: damaged or cut short; the curves end there")
            try:
                event = Event.FromString(data)
            except DecodeError:
                raise ValueError(f"{file.name}: damaged; the curves end there") from None
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value


@dataclass
class Found:
    """The runs below some folders, and what was left out: (path, reason)."""

    runs: list[Run]
    left_out: list[tuple[Path, str]]


def find_runs(folders: Sequence[Path]) -> Found:
    """All runs below ``folders``. Where two folders hold the same arm and seed, arms are named ``FOLDER/ARM``.

    Of an arm and seed that one folder holds several times, the newest is taken, a finished one before others.

    Raises:
        ValueError: a folder that is not there, or no run at all; one line.
    """
    found = Found([], [])
    by_root: list[list[Run]] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such directory; choose run directories, or that of a sweep")
        by_root.append([run for path in run_folders(folder) if (run := read_run(path, found))])
    keys = [{(run.arm, run.seed) for run in runs} for runs in by_root]
    clash = any(a & b for i, a in enumerate(keys) for b in keys[:i])
    for folder, runs in zip(folders, by_root, strict=True):
        again: dict[tuple[str, int], list[Run]] = {}
        for run in sorted(runs, key=lambda run: (run.finished, run.result.get("started", ""))):
            run.arm = f"{folder.resolve().name}/{run.arm}" if clash else run.arm
            again.setdefault((run.arm, run.seed), []).append(run)
        for *older, newest in again.values():
            what = f"the newest {'finished ' * newest.finished}run of this arm and seed"
            found.left_out += [(run.folder, f"{newest.folder} is taken, {what}") for run in older]
            found.runs.append(newest)
    if not found.runs:
        names = ", ".join(map(str, folders))
        why = "; ".join(f"{path}: {reason}" for path, reason in found.left_out)
        raise ValueError(f"{names}: no run to compare below it" + (f" ({why})" if why else ": no result.json"))
    return found


def run_folders(folder: Path) -> list[Path]:
    """The run directories in and below ``folder``, by name."""
    paths = []
    for path, names, files in os.walk(folder):
        if "result.json" in files or ("config.yaml" in files and "comparison.json" not in files):
            paths.append(Path(path))
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
    return paths


def read_run(folder: Path, found: Found) -> Run | None:
    """The run in ``folder``; or None, and the reason goes to ``found.left_out``."""
    file = folder / "result.json"
    try:
        result = json.loads(file.read_text())
        for key, kind in NEEDED.items():
            if not isinstance(result[key], kind):
                raise ValueError(f"{key} is {result[key]!r}")
        if result["status"] not in ("finished", "raised", "interrupted"):
            raise ValueError(f"status is {result['status']!r}")
        result["metrics"] = {k: float(v) for k, v in result["metrics"].items() if isinstance(v, (int, float))}
    except FileNotFoundError:
        found.left_out.append((folder, "still going, or killed: it has no result.json"))
    except (OSError, ValueError, TypeError, LookupError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        found.left_out.append((folder, f"damaged result.json: {reason}"))
    else:
        if result.get("mode", "train") == "train":
            return Run(folder, result["arm"], result["seed"], result, [*result.get("notes", [])])
        found.left_out.append((folder, f"mode={result['mode']}: no training"))
    return None
