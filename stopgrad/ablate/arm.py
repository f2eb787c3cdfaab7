"""One arm of an ablation, in a process of its own.

Its output is the script's. It leaves ``result.json``, ``fingerprints.pt`` and its curves in its folder, as a run of a
recipe does; ``python -m stopgrad.ablate.arm SPEC.json FIRST LAST FOLDER`` leaves fingerprints of these steps alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import stopgrad
from stopgrad.ablate.record import Record
from stopgrad.ablate.sites import sites
from stopgrad.ablate.workspace import Workspace, WritesElsewhere, clear
from stopgrad.compare.files import write_whole
from stopgrad.compare.fingerprint import FILE
from stopgrad.compare.read import scalars
from stopgrad.rewrite.source import execute, is_users, module_file
from stopgrad.rewrite.steps import Enough, at_most
from stopgrad.rewrite.switches import chosen
from stopgrad.watch.hooks import overhear
from stopgrad.watch.tracebacks import without_ours
from stopgrad.watch.watch import Watch

OUTPUT, SITES = "output.txt", "sites.json"
NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf)"
PRINTED = re.compile(rf"([A-Za-z_][\w/.() -]{{0,40}}?)\s*[:=]\s*({NUMBER})\b(?!\.?\d)", re.IGNORECASE)
COUNTS = {"epoch", "step", "iter", "iteration", "batch", "seed", "episode", "time", "eta", "epochs", "steps", "v_num"}
COUNTED = re.compile(rf".*\b(?:{'|'.join(COUNTS)})\s*\d[\d/.]*\W*", re.IGNORECASE)  # "Epoch 3/10" before a name


@dataclass(frozen=True)
class Spec:
    """What an arm does.

    Attributes:
        script: absolute; or, with ``module``, a module's name.
        source: the script's own working directory; ``out``: of all arms; ``folder``: of the arm and seed. Absolute.
        stops: as ``--stop`` writes them, with absolute files.
        changes: the same by the names of the sites, and ``default`` as these stand.
        lists_sites: leaves ``sites.json``.
    """

    script: str
    arguments: list[str]
    module: bool
    name: str
    source: str
    out: str = ""
    arm: str = ""
    seed: int = 0
    folder: str = ""
    stops: list[str] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    default: dict[str, str] = field(default_factory=dict)
    steps: int | None = None
    allow_writes: bool = False
    lists_sites: bool = False

    def write(self) -> Path:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        file = Path(self.folder) / "spec.json"
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return file


def run(spec: Spec, window: tuple[int, int] | None = None, replay: str | None = None) -> dict[str, Any]:
    """Run the script as the arm has it; what it came to, as in ``result.json``."""
    folder = Path(replay or spec.folder)
    work = Workspace(folder / "work", Path(spec.source), spec.allow_writes, Path(spec.out or folder))
    record, result = Record(window), begun(spec)
    switches = chosen(spec.stops, spec.script)
    switches.all_noted, switches.eager = spec.lists_sites, True
    watch = Watch(cycles=3, every=0, books=3)
    work.fill()
    seed_all(spec.seed)
    started, steps = time.perf_counter(), window[1] if window else spec.steps
    error: BaseException | None = None
    with work.guarded(), overhear(watch), record.on(), at_most(steps), switches.on() as rewrite:
        try:
            execute(spec.script, spec.arguments, module=spec.module, rewrite=rewrite, folder=spec.source)
        except Enough:
            pass
        except SystemExit as end:
            error = end if end.code not in (None, 0) else None
        except BaseException as raised:
            raised.__traceback__ = without_ours(raised.__traceback__)
            traceback.print_exception(raised)
            error = raised
        record.finish()
        watch.close(ended=error is None)
    sys.stdout.flush()
    result |= ended(error) | {
        "steps": record.step,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
        "step_time": record.step_time,
        "flow": watch.matrix.to_dict() if watch.matrix else None,
        "notes": switches.notes(),
    }
    if record.taken.steps:
        record.taken.save(folder / FILE)
        result["weights_sha256"] = record.weights()
    if replay is None:
        result["files"] = {file: digest(file) for file in sorted(sources(spec) | work.settings) if os.path.isfile(file)}
        logged = curves(folder / "work")
        record.write_curves(folder / "csv" / "metrics.csv", logged)
        ends = {tag: curve[-1][1] for tag, curve in logged.items() if tag.lower() not in COUNTS}
        result["losses"] = [*record.losses]
        result["metrics"] = record.last_losses() | ends | printed(folder / OUTPUT)
        if spec.lists_sites:
            (folder / SITES).write_text(json.dumps([site.to_dict() for site in sites(watch, switches)]))
    return result


def sources(spec: Spec) -> set[str]:
    """The files of the user's that were run."""
    files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    files.add(module_file(spec.script) if spec.module else spec.script)
    return {os.path.realpath(file) for file in files if isinstance(file, str) and file and is_users(file)}


def digest(file: str) -> str:
    """Of what a file holds; "" where it is gone."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _started(spec: Spec) -> datetime:
    """When the arm was asked for, one after the other: those that run side by side begin in any order."""
    asked = Path(spec.folder, "spec.json")
    return datetime.fromtimestamp(asked.stat().st_mtime if asked.exists() else time.time(), timezone.utc)


def begun(spec: Spec) -> dict[str, Any]:
    return {
        "recipe": spec.name,
        "arm": spec.arm,
        "stop": spec.changes,
        "stop_default": spec.default,
        "seed": spec.seed,
        "mode": "train",
        "started": _started(spec).isoformat(timespec="microseconds"),
        "metrics": {},
        "versions": {"stopgrad": stopgrad.__version__, "torch": str(torch.__version__)},
        "replay": {
            "cwd": spec.source,
            "arguments": ["-m", "stopgrad.ablate.arm", f"{spec.folder}/spec.json", "{first}", "{last}", "{folder}"],
        },
    }


def ended(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"status": "finished"}
    if isinstance(error, KeyboardInterrupt):
        return {"status": "interrupted"}
    message = f"exit status {error.code}" if isinstance(error, SystemExit) else str(error).partition("\n")[0]
    refused = {"refused": True} if isinstance(error, WritesElsewhere) else {}
    return {"status": "raised", "error": type(error).__name__, "message": message or type(error).__name__, **refused}


def seed_all(seed: int) -> None:
    """Before the script, which may still seed itself."""
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ModuleNotFoundError:
        return
    numpy.random.seed(seed)


def curves(work: Path) -> dict[str, list[tuple[int, float]]]:
    """What the script has logged to TensorBoard, by tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in _event_files(work):
        try:
            for tag, step, value in scalars(file):
                found.setdefault(tag, []).append((step, value))
        except (ValueError, ImportError):
            continue  # cut short: what was read is there
    return found


def _event_files(work: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(work):  # links are not followed: only what this arm has written
        yield from (path for name in files if ".tfevents." in name and not (path := Path(folder) / name).is_symlink())


def printed(file: Path) -> dict[str, float]:
    """The last number that was printed as ``name: number`` or ``name=number``, by name; no counts of steps or time."""
    found: dict[str, float] = {}
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            for text, value in PRINTED.findall(line):
                name = COUNTED.sub("", text.strip())
                if name and name.lower() not in COUNTS:
                    found[name] = float(value)
    return found


def leave(spec: Spec) -> None:
    """Run the arm in this process, which is its own, and leave ``result.json``."""
    os.chdir(spec.source)
    write(Path(spec.folder), run(spec))


def write(folder: Path, result: dict[str, Any]) -> None:
    """Leave ``result.json`` in a folder, whole."""
    write_whole(folder / "result.json", json.dumps(result, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    """Run an arm again: SPEC.json, the first and the last step, and where its fingerprints go."""
    file, first, last, folder = arguments
    clear(Path(folder))
    run(Spec(**json.loads(Path(file).read_text())), (int(first), int(last)), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
