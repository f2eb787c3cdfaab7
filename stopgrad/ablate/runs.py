"""The runs of an ablation: each arm and seed in a process and a folder of its own, and none twice."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stopgrad.ablate.arm import OUTPUT, Spec, begun, digest, leave, write
from stopgrad.ablate.arms import Arm
from stopgrad.ablate.workspace import clear
from stopgrad.rewrite.process import end, started

TIMEOUT, ENDED = "Timeout", "Ended"  # what is said of runs that could say nothing themselves


class Runs:
    """Where the runs of a script's arms go, and how they are made.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        script = options.script if options.module else os.path.abspath(options.script)
        name = options.script if options.module else os.path.basename(options.script)
        self.out = Path(options.out or f"runs/ablate/{name.removesuffix('.py')}").absolute()
        self.timeout: float | None = options.timeout
        self.jobs: int = options.jobs
        self._spec = Spec(
            script=script,
            arguments=options.arguments,
            module=options.module,
            name=name,
            source=os.getcwd(),
            out=str(self.out),
            steps=options.steps,
            allow_writes=options.allow_writes,
        )

    def spec(self, arm: Arm, seed: int, *, within: str = "", lists_sites: bool = False) -> Spec:
        """What the arm's run with this seed is; in a folder within the others' where ``within`` names one."""
        return replace(
            self._spec,
            arm=arm.name,
            seed=seed,
            folder=str(self.out / within / arm.folder / f"seed-{seed}"),
            arguments=[argument.replace("{seed}", str(seed)) for argument in self._spec.arguments],
            stops=list(arm.stops),
            changes=dict(arm.changes),
            default=dict(arm.default),
            lists_sites=lists_sites,
        )

    def are_current(self, folder: Path) -> bool:
        """Whether the run that lies there is of this script as it is now, with these arguments and steps."""
        try:
            before = Spec(**json.loads((folder / "spec.json").read_text()))
            result = json.loads((folder / "result.json").read_text())
        except (OSError, ValueError, TypeError):
            return False
        now = self.spec(Arm(before.arm), before.seed)
        kept = ("arm", "seed", "folder", "stops", "changes", "default", "lists_sites")
        return before == replace(now, **{name: getattr(before, name) for name in kept}) and _is_up_to_date(result)

    def result(self, spec: Spec) -> dict[str, Any]:
        """What one run came to."""
        return next(self.results([spec]))[1]

    def results(self, specs: Sequence[Spec]) -> Iterator[tuple[Spec, dict[str, Any]]]:
        """What each run came to, as they end; from its folder, if it is there already.

        A run is forked from this process, which has loaded torch and run nothing: it starts at once.
        """
        waiting, running = [*specs], dict[BaseProcess, tuple[Spec, float]]()
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    spec = waiting.pop(0)
                    known = _known(Path(spec.folder), spec)
                    if known is None or known.get("error") in (TIMEOUT, ENDED) or not _is_up_to_date(known):
                        running[_started(spec)] = spec, time.monotonic()
                    else:
                        yield spec, known
                for process in self._ended(running) if running else ():
                    spec, _ = running.pop(process)
                    yield spec, self._result(spec, process)
        finally:
            for process in running:
                end(process)

    def _ended(self, running: Mapping[BaseProcess, tuple[Spec, float]]) -> list[BaseProcess]:
        """Waits for one that has ended, or whose time is over."""
        over = min((begun for _, begun in running.values()), default=0.0) + (self.timeout or math.inf)
        rest = None if over == math.inf else max(0.0, over - time.monotonic())
        wait([process.sentinel for process in running], rest)
        now = time.monotonic()
        late = [p for p, (_, begun) in running.items() if now - begun >= (self.timeout or math.inf)]
        return [p for p in running if p in late or not p.is_alive()]

    def _result(self, spec: Spec, process: BaseProcess) -> dict[str, Any]:
        is_late = process.is_alive()
        end(process)
        if is_late:
            return _failed(spec, TIMEOUT, f"did not end within --timeout {self.timeout:g} s")
        result = _known(Path(spec.folder), spec)
        if result is not None:
            return result
        code = process.exitcode or 0
        last = (Path(spec.folder) / OUTPUT).read_text(errors="replace").strip().splitlines()[-1:]
        return _failed(spec, ENDED, ": ".join([f"signal {-code}" if code < 0 else f"exit status {code}", *last]))


def _started(spec: Spec) -> BaseProcess:
    folder = Path(spec.folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "spec.json").exists():
        raise ValueError(f"{folder}: holds what is no arm's; choose another --out")
    clear(folder)
    spec.write()
    return started(leave, spec, output=folder / OUTPUT)


def _known(folder: Path, spec: Spec) -> dict[str, Any] | None:
    """The result that lies there, if it is that of this very run, and was not interrupted."""
    try:
        before = Spec(**json.loads((folder / "spec.json").read_text()))
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError, TypeError):
        return None
    return result if before == spec and result["status"] != "interrupted" else None


def _is_up_to_date(result: Mapping[str, Any]) -> bool:
    """The files that the run has read are as they were."""
    return all(digest(file) == before for file, before in result.get("files", {}).items())


def _failed(spec: Spec, error: str, message: str) -> dict[str, Any]:
    result = begun(spec) | {"status": "raised", "error": error, "message": message, "steps": None}
    write(Path(spec.folder), result)
    return result
