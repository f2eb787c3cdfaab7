"""What the tour measures: a script under the watch of ``run``, and the arms of ``ablate``."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stopgrad.ablate import options as ablation
from stopgrad.ablate.arms import AGAIN, REFERENCE, Arm, asked_arms
from stopgrad.ablate.command import declared, judged
from stopgrad.ablate.runs import Runs
from stopgrad.compare.read import find_runs
from stopgrad.rewrite.options import add_script
from stopgrad.rewrite.process import end, started
from stopgrad.rewrite.switches import chosen
from stopgrad.watch.report import Report, save
from stopgrad.watch.run import follow
from stopgrad.watch.watch import Watch

SEEDS = "0,1,2"
DISTANCE = re.compile(r"^distance: (\S+)$", re.M)


def source(text: str, *, mended: bool) -> str:
    """One side of a diff."""
    keep = " +" if mended else " -"
    return "".join(f"{line[2:]}\n" for line in text.splitlines() if line[:1] in ("", *keep))


def line_of(script: str, words: str) -> int:
    """The number of the one line of a script that holds these words."""
    (number,) = [n for n, line in enumerate(script.splitlines(), 1) if words in line]
    return number


@dataclass(frozen=True)
class Watched:
    """What ``run`` tells of a script, and the distances that it printed."""

    report: dict[str, Any]
    distances: list[float]


def watched(script: Path) -> Watched:
    """Run the script, watched, in a process of its own.

    Raises:
        RuntimeError: it ended otherwise than it should.
    """
    output, report = script.with_suffix(".txt"), script.with_suffix(".json")
    process = started(_watch, script, report, output=output)
    try:
        process.join()
    finally:
        end(process)
    if process.exitcode != 0:
        last = output.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise RuntimeError(f"{script.name}: exit status {process.exitcode}: {last[0]}")
    return Watched(json.loads(report.read_text()), distances(output))


def _watch(script: Path, report: Path) -> None:
    torch.manual_seed(0)
    watch = Watch(cycles=3, every=0)
    options = argparse.Namespace(script=str(script), arguments=[], module=False)
    status, error = follow(options, watch, chosen([], str(script)))
    save(Report.of(watch, script.name, error=error), report, force=True)
    raise SystemExit(status)


def distances(output: Path) -> list[float]:
    """What the script printed."""
    return [float(number) for number in DISTANCE.findall(output.read_text())]


@dataclass(frozen=True)
class Compared:
    """The arms of an ablation, the reference first, as ``comparison.json`` has them; the weights and distances of each
    by seed."""

    arms: list[dict[str, Any]]
    weights: dict[str, list[str]]
    distances: dict[str, list[list[float]]]


def ablated(script: Path, options: Sequence[str], tell: Callable[[str], None], write: bool = False) -> Compared:
    """The script and the arms that the options of ``ablate`` name, run and compared in the working directory.

    Args:
        tell: is told how far it is.
        write: leave the comparison's pages beside the runs.

    Raises:
        RuntimeError: the script as it stands raised.
    """
    parser = argparse.ArgumentParser()
    ablation.add_options(parser)
    add_script(parser)
    asked = parser.parse_args([*options, "--jobs", str(min(4, os.cpu_count() or 1)), str(script)])
    runs, seeds = Runs(asked), [int(seed) for seed in asked.seeds.split(",")]
    arms = [Arm(REFERENCE), *asked_arms(asked.arm, str(script))]
    specs = [runs.spec(arm, seed) for seed in seeds for arm in arms]
    again = runs.spec(Arm(AGAIN), seeds[0], within=".again")
    for done, (spec, result) in enumerate(runs.results([*specs, again]), 1):
        tell(f"{done} of {len(specs) + 1} trainings")
        if result["status"] != "finished" and spec.arm in (REFERENCE, AGAIN):
            raise RuntimeError(f"{script.name}: {result.get('message', result['status'])}")
    comparison = judged(find_runs([runs.out]), declared(asked), Path(specs[0].folder), Path(again.folder))
    if write:
        comparison.write(runs.out)
    folders = {arm.name: [Path(s.folder) for s in specs if s.arm == arm.name] for arm in arms}
    results = {name: [json.loads((f / "result.json").read_text()) for f in each] for name, each in folders.items()}
    return Compared(
        comparison.content["arms"],
        {name: [result.get("weights_sha256", "") for result in each] for name, each in results.items()},
        {name: [distances(f / "output.txt") for f in each] for name, each in folders.items()},
    )
