"""``python -m stopgrad ablate``: the reference, an arm for each cut, and what each of them is worth."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stopgrad.ablate.arm import OUTPUT, SITES, Spec, write
from stopgrad.ablate.arms import AGAIN, REFERENCE, Arm, arm_of, asked_arms
from stopgrad.ablate.options import add_options
from stopgrad.ablate.runs import Runs
from stopgrad.ablate.sites import Site
from stopgrad.compare import Comparison
from stopgrad.compare.difference import first_difference
from stopgrad.compare.files import write_whole
from stopgrad.compare.fingerprint import FILE, Fingerprints
from stopgrad.compare.read import Found, find_runs
from stopgrad.compare.verdict import judge
from stopgrad.compare.words import plain
from stopgrad.rewrite.options import with_further
from stopgrad.watch.options import writable
from stopgrad.watch.run import check_script, script_file

MOST_METRICS = 6  # of what the script tells, unless some are picked
Rules = dict[str, dict[str, Any]]


def ablate_command(options: argparse.Namespace) -> int:
    """Run the arms and compare them; Ctrl-C compares what is finished.

    Raises:
        ValueError: what cannot be run as it is asked for, or not as it stands; one line.
    """
    options = with_further(options, "ablate", add_options)
    check_script(options)
    writable(json=options.json)
    for flag in ("jobs", "steps"):
        if (number := getattr(options, flag)) is not None and number < 1:
            raise ValueError(f"--{flag} {number}: choose a number from 1")
    if options.timeout is not None and not options.timeout > 0:
        raise ValueError(f"--timeout {options.timeout:g}: choose a number of seconds")
    asked, rules = asked_arms(options.arm, script_file(options)), declared(options)
    seeds = _seeds(options.seeds)
    runs, progress = Runs(options), Progress()
    first = runs.spec(Arm(REFERENCE), seeds[0], lists_sites=True)
    again = runs.spec(Arm(AGAIN), seeds[0], within=".again")
    interrupted = False
    try:
        result = progress.told(first, runs.result(first))
        if result["status"] == "raised":
            why = "" if result.get("refused") else "the script as it stands raised: "
            raise ValueError(f"{why}{result['message']} ({Path(first.folder) / OUTPUT})")
        if not result["steps"]:
            raise ValueError(
                "the script as it stands makes no step of a torch.optim.Optimizer: nothing can be compared"
            )
        arms = [*asked]
        if options.each or not asked:
            arms += [arm_of(site, script_file(options)) for site in _sites(first) if site.legal]
        specs = [runs.spec(arm, seed) for seed in seeds for arm in (Arm(REFERENCE), *arms)][1:]
        progress.total = len(specs) + 2
        progress.told(again, runs.result(again))
        for spec, ended in runs.results(specs):
            progress.told(spec, ended)
    except KeyboardInterrupt:
        interrupted, compares = True, (Path(first.folder) / "result.json").exists()
        what = "what is finished is compared" if compares else "nothing is finished that could be compared"
        print(f"interrupted: {what}", file=sys.stderr)
        if not compares:
            return 130
    found = find_runs([runs.out])
    others = [run for run in found.runs if not runs.are_current(run.folder)]
    found.left_out += [(run.folder, "of another version of the script, or other arguments") for run in others]
    found.runs = [run for run in found.runs if run not in others]
    compared = judged(found, rules, Path(first.folder), Path(again.folder))
    compared.write(runs.out)
    print(f"\n{compared}\n\n{runs.out / 'comparison.html'}")
    if options.json:
        write_whole(Path(options.json), json.dumps(plain({"arms": list(rows(compared))}), indent=1) + "\n")
    return 130 if interrupted else 0


class Progress:
    """A line for each run that has ended, out of ``total``."""

    def __init__(self) -> None:
        self.total, self._done = 0, 0

    def told(self, spec: Spec, result: dict[str, Any]) -> dict[str, Any]:
        self._done += 1
        of = f"/{self.total}" if self.total else ""
        ended = result["status"] + (f": {result['message'][:80]}" if "message" in result else "")
        print(f"[{self._done}{of}] {spec.arm}, seed {spec.seed}: {ended}", file=sys.stderr, flush=True)
        return result


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text):  # NumPy's end at 32 bits
        raise ValueError(f"--seeds {text}: write whole numbers, such as 0,1,2")
    return list(dict.fromkeys(map(int, text.split(","))))


def _sites(spec: Spec) -> list[Site]:
    rows = json.loads((Path(spec.folder) / SITES).read_text())
    return [Site.of(row) for row in rows]


def declared(options: argparse.Namespace) -> Rules:
    """What ``--metric``, ``--margin`` and ``--broken`` say, as a recipe declares it.

    Raises:
        ValueError: one is written otherwise; one line.
    """
    found: Rules = {name: {} for name in options.metric}
    for text in options.margin:
        name, _, margin = text.rpartition("=")
        if not name or _number(margin) is None:
            raise ValueError(f"--margin {text}: write NAME=NUMBER, such as loss=.1")
        found.setdefault(name, {})["margin"] = abs(_number(margin) or 0.0)
    for text in options.broken:
        met = re.fullmatch(r"(.+?)\s*([<>])\s*(\S+)", text)
        if met is None or _number(met[3]) is None:
            raise ValueError(f"--broken {text}: write NAME>NUMBER or NAME<NUMBER, such as loss>10")
        found.setdefault(met[1], {})["broken_above" if met[2] == ">" else "broken_below"] = _number(met[3])
    return {name: {"goal": None, "margin": 0.0, **rule} for name, rule in found.items()}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def judged(found: Found, rules: Rules, first: Path, again: Path) -> Comparison:
    """The comparison of the runs, by what was asked for, or else by what the script tells."""
    reference = next(run for run in found.runs if run.folder == first)
    metrics = reference.metrics
    missing = [name for name in rules if all(name not in run.metrics for run in found.runs)]
    if missing:
        raise ValueError(f"--metric {missing[0]}: the script tells {', '.join(metrics) or 'no number'}")
    if not rules:
        told = [name for name in metrics if name not in reference.result["losses"]] or [*metrics]
        rules = {name: {"goal": None, "margin": 0.0} for name in told[:MOST_METRICS]}
    notes = unequal(first, again, rules, metrics)
    ends = [run.result.get("weights_sha256") for run in found.runs if run.arm == REFERENCE and run.finished]
    repeats = len(ends) > 1 == len({*ends})
    if repeats:
        notes.append("the script seeds itself, so that all seeds are one; it can be given {seed} as an argument")
    runs = [run for run in found.runs if run.seed == reference.seed or not repeats]
    for run in runs:
        run.result |= {"metrics_declared": rules, "compare": {"reference": REFERENCE, "arms": []}}
        write(run.folder, run.result)  # for `compare`
    content = judge(Found(runs, found.left_out), REFERENCE)
    content["notes"] += notes
    return Comparison(content, found)


def unequal(first: Path, again: Path, rules: Rules, metrics: Mapping[str, float]) -> list[str]:
    """Where the script, run twice alike, does not equal itself: what is said; margins then cover the spread."""
    try:
        here, there = Fingerprints.load(first / FILE), Fingerprints.load(again / FILE)
        repeated = json.loads((again / "result.json").read_text())["metrics"]
    except (OSError, ValueError):
        return []
    parted = first_difference(here, there)
    if parted is None:
        return []
    for name, rule in rules.items():
        spread = abs(repeated.get(name, math.nan) - metrics.get(name, math.nan))
        rule["margin"] = max(rule["margin"], spread) if math.isfinite(spread) else rule["margin"]
    since = f"from step {parted['step']} on, in {parted['tensor']}"
    return [f"the script, run twice alike, does not equal itself {since}: arms are judged by that spread, not by bits"]


def rows(compared: Comparison) -> Iterator[dict[str, Any]]:
    """Each arm, for ``--json``."""
    for arm in compared.content["arms"]:
        first, parting = arm["first_difference"] or {}, arm["parting"]
        yield {
            "name": arm["name"],
            "changes": arm["stop"],
            "verdict": arm["verdict"],
            "step": first.get("step"),
            "tensor": first.get("tensor"),
            "cosine": {group: each["cosine"] for group, each in parting.items()},
            "norm_ratio": {group: each["norm_ratio"] for group, each in parting.items()},
            "metrics": {name: each["values"] for name, each in arm["metrics"].items()},
            "cost": arm["cost"]["step_time_ratio"],
        }
