"""From runs to verdicts: one for each arm, against the reference, with the numbers it rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stopgrad.compare.difference import over_seeds
from stopgrad.compare.divergence import ENDED_BY, beyond, divergence, losses
from stopgrad.compare.read import Found, Run
from stopgrad.compare.statistics import difference
from stopgrad.compare.words import number, sentence
from stopgrad.cuts.strategies import nearest

SCHEMA = "stopgrad.comparison/1"
VERDICTS = (
    "raised",
    "broken",
    "identical",
    "cannot_tell",
    "different_training",
    "same_result",
)  # the first that applies
Arms = Mapping[str, Mapping[int, Run]]


def by_arm(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """Runs by arm and seed; arms as the comparison's config lists them, else in the order in which they started."""
    arms: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.result.get("started", "")):
        arms.setdefault(run.arm, {})[run.seed] = run
    listed = {name: k for run in runs for k, name in enumerate((run.result.get("compare") or {}).get("arms", []))}
    order = sorted(arms, key=lambda name: listed.get(name.rpartition("/")[2], len(listed)))
    return {name: dict(sorted(arms[name].items())) for name in order}


def choose_reference(arms: Arms, asked: str | None) -> str:
    """The arm that the others are held against: as asked, or as configured, or with the paper's cuts, or the first.

    Raises:
        ValueError: there is no arm of the name that was asked for.
    """
    if asked is not None:
        if asked not in arms:
            raise ValueError(f"reference={asked}: choose one of {', '.join(arms)}{nearest(asked, arms)}")
        return asked
    first = [(name, next(iter(seeds.values())).result) for name, seeds in arms.items()]
    for name, result in first:
        if name.rpartition("/")[2] == (result.get("compare") or {}).get("reference"):
            return name
    for name, result in first:
        if result.get("stop") is not None and result.get("stop") == result.get("stop_default"):
            return name
    return first[0][0]


def judge(found: Found, reference: str | None = None, measured: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The comparison, as it stands in ``comparison.json`` (docs/comparison.md tells the keys).

    Raises:
        ValueError: no arm is called ``reference``.
    """
    arms = by_arm(found.runs)
    chosen = choose_reference(arms, reference)
    order = [chosen, *(name for name in arms if name != chosen)]
    first = next(iter(arms[chosen].values())).result
    declared = first.get("metrics_declared") or {}
    judged = [judge_arm(name, arms[name], arms[chosen], declared, name == chosen) for name in order]
    for arm in judged:
        arm["expected"] = expected(arm["name"], arms[arm["name"]], chosen)
        arm["cost"] |= interleaved(measured, arm["name"], chosen)
        arm["same_weights_as"] = [n for n in order if n != arm["name"] and same_weights(arms[n], arms[arm["name"]])]
        arm["sentence"] = sentence(arm, judged[0], declared)
    curves = {name: spread(runs.values()) for name, runs in arms.items()}
    tags = list(dict.fromkeys(tag for tagged in curves.values() for tag in tagged))
    return {
        "schema": SCHEMA,
        "recipe": first["recipe"],
        "reference": chosen,
        "seeds": sorted({seed for seeds in arms.values() for seed in seeds}),
        "metrics_declared": declared,
        "losses": first.get("losses", []),
        "arms": judged,
        "curves": {tag: {name: curves[name][tag] for name in order if tag in curves[name]} for tag in tags},
        "notes": notes(found.runs) + arm_notes(judged) + curve_notes(arms),
        "left_out": [{"path": str(path), "reason": reason} for path, reason in found.left_out],
    }


def expected(name: str, runs: Mapping[int, Run], reference: str) -> str | None:
    """The verdict that the arm's config declares; None where it declares none, or against another reference."""
    compared = next(iter(runs.values())).result.get("compare") or {}
    if reference.rpartition("/")[2] != compared.get("reference"):
        return None
    return (compared.get("expect") or {}).get(name.rpartition("/")[2])


def same_weights(a: Mapping[int, Run], b: Mapping[int, Run]) -> bool:
    """Whether both arms have finished the same seeds with the same weights, bit for bit."""

    def hashes(runs: Mapping[int, Run]) -> dict[int, str]:
        return {seed: run.result["weights_sha256"] for seed, run in runs.items() if run.finished}

    return bool(hashes(a)) and hashes(a) == hashes(b)


def judge_arm(
    name: str, runs: Mapping[int, Run], others: Mapping[int, Run], declared: Mapping[str, Any], is_reference: bool
) -> dict[str, Any]:
    """One arm against the reference, over the seeds that both have, and have run to the same step."""
    pairs = [(runs[seed], others[seed]) for seed in runs if seed in others]
    ended = [(a, r) for a, r in pairs if a.finished and r.finished and a.result.get("steps") == r.result.get("steps")]
    metrics = metric_differences(list(runs.values()), ended, declared)
    first = next(iter(runs.values())).result
    arm: dict[str, Any] = {
        "name": name,
        "stop": first.get("stop", {}),
        "runs": [
            {"seed": seed, "path": str(run.folder), "status": run.result["status"], "steps": run.result.get("steps")}
            for seed, run in runs.items()
        ],
        "message": next((r.result["message"] for r in runs.values() if "message" in r.result), None),
        "settings": settings(pairs),
        "contract": next((r.result["contract"] for r in runs.values() if r.result.get("contract")), None),
        "diverged": {seed: found for seed, run in runs.items() if (found := divergence(run, declared))},
        "seeds_paired": [a.seed for a, _ in ended],
        "metrics": metrics,
        "flow": flow(pairs or [(run, run) for run in runs.values()]),
        "cost": cost(list(runs.values()), ended),
        **over_seeds([] if is_reference else pairs),
    }
    arm["verdict"], arm["because"] = verdict(runs, others, ended, metrics, declared, is_reference)
    return arm


def verdict(
    runs: Mapping[int, Run],
    others: Mapping[int, Run],
    ended: Sequence[tuple[Run, Run]],
    metrics: Mapping[str, Any],
    declared: Mapping[str, Any],
    is_reference: bool,
) -> tuple[str, list[str]]:
    """The first verdict that applies, and what it rests on, in words."""
    raised = [r for r in runs.values() if r.result["status"] == "raised" and r.result.get("error") != ENDED_BY]
    if raised:
        return "raised", [f"{raised[0].result.get('error', 'error')} in {len(raised)} of {len(runs)} seeds"]
    crossed = [line for run in runs.values() for line in broken(run, declared)]
    if crossed:
        return "broken", crossed
    if is_reference:
        return "reference", []
    if not ended:
        if not set(runs) & set(others):
            return "cannot_tell", [f"shares no seed with the reference: {listing(runs)} here, {listing(others)} there"]
        lengths = [(run.result.get("steps"), others[seed].result.get("steps")) for seed, run in runs.items()
                   if seed in others and run.finished and others[seed].finished]  # fmt: skip
        if lengths:
            return "cannot_tell", [f"{lengths[0][0]} steps here, {lengths[0][1]} in the reference"]
        return "cannot_tell", ["no seed has finished in both arms"]
    if all(a.result.get("weights_sha256", 0) == r.result.get("weights_sha256", 1) for a, r in ended):
        return "identical", [f"equal weights, bit for bit, in {len(ended)} of {len(ended)} seeds"]
    told = {name: m["difference"] for name, m in metrics.items() if name in declared and m.get("difference")}
    if not told:
        reason = "the recipe declares no metric to judge by" if not declared else "no declared metric is in both arms"
        return "cannot_tell", [f"the weights differ; {reason}"]
    differing = [name for name, d in told.items() if d["conclusion"] == "different"]
    if differing and (gone := next(filter(None, (divergence(r, declared) for _, r in ended)), None)):
        return "different_training", [f"the reference's {gone['metric']} diverged"]
    if differing:
        return "different_training", [interval_words(name, told[name], "95%") for name in differing]
    unclear = [name for name, d in told.items() if d["conclusion"] == "cannot_tell"]
    if unclear:
        return "cannot_tell", [interval_words(name, told[name], "95%") for name in unclear]
    return "same_result", [interval_words(name, d, "90%") for name, d in told.items()]


def broken(run: Run, declared: Mapping[str, Any]) -> list[str]:
    """What makes a run broken: a loss that is no number, a declared metric that is none or beyond its line."""
    if run.result.get("error") == ENDED_BY:
        return [f"seed {run.seed}: {run.result.get('message')}"]
    if not run.finished:
        return []
    found = [
        f"seed {run.seed}: {name} is {value}"
        for name, value in run.metrics.items()
        if name in {*losses(run), *declared} and not math.isfinite(value)
    ]
    for name, rule in declared.items():
        value = run.metrics.get(name)
        if value is not None and math.isfinite(value) and (side := beyond(value, rule)):
            line = number(rule[f"broken_{side}"])
            found.append(f"seed {run.seed}: {name} {number(value)} is {side} the line {line}")
    return found


def settings(pairs: Sequence[tuple[Run, Run]]) -> dict[str, list[Any]]:
    """What the config of the arm has otherwise than the reference's, beside the cuts: key, [here, there]."""
    for run, other in pairs:
        here, there = run.result.get("settings", {}), other.result.get("settings", {})
        if here and there:
            keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
            return {key: [here.get(key), there.get(key)] for key in keys}
    return {}


def interval_words(name: str, d: Mapping[str, Any], level: str) -> str:
    n = len(d["values"])
    if n < 2:
        return f"{name}: {n} seed cannot tell {number(d['mean'], sign=True)} from noise"
    low, high = (d["low"], d["high"]) if level == "95%" else (d["low90"], d["high90"])
    ends = f"{number(low, sign=True)} to {number(high, sign=True)}"
    more = f"; about {d['seeds_needed']} seeds would tell" if d["seeds_needed"] else ""
    return (
        f"{name} {number(d['mean'], sign=True)}, {level} interval {ends}, margin {number(d['margin'])}, {n} seeds{more}"
    )


def listing(seeds: Iterable[int]) -> str:
    return "seeds " + ", ".join(map(str, seeds))


def metric_differences(
    runs: Sequence[Run], ended: Sequence[tuple[Run, Run]], declared: Mapping[str, Any]
) -> dict[str, Any]:
    """Each metric's values by seed and, where the recipe declares it, its judged paired difference."""
    names = list(dict.fromkeys([*declared, *(name for run in runs for name in run.metrics)]))
    usable = [
        name
        for name in declared
        if ended and all(math.isfinite(x.metrics.get(name, math.nan)) for pair in ended for x in pair)
    ]
    out: dict[str, Any] = {}
    for name in names:
        values = {run.seed: run.metrics[name] for run in runs if name in run.metrics}
        if not values:
            continue
        out[name] = {"values": values, "mean": statistics.fmean(values.values())}
        if name in usable:
            apart = [a.metrics[name] - r.metrics[name] for a, r in ended]
            out[name]["difference"] = difference(apart, declared[name].get("margin", 0.0), len(usable)).to_dict()
    return out


def flow(pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """The flow matrix of the first seed that has one; ``changed`` lists the cells that differ from the reference's."""
    for run, other in pairs:
        matrix, before = run.result.get("flow"), other.result.get("flow")
        if matrix:
            break
    else:
        return {"seed": None, "matrix": None, "changed": []}
    seen = {loss: {part: beside(matrix, before or {}, loss, part) for part in row} for loss, row in matrix.items()}
    changed = [
        {"loss": loss, "part": part, "was": cell["was"], "is": cell["state"]}
        for loss, row in seen.items()
        for part, cell in row.items()
        if cell["was"] not in (None, cell["state"])
    ]
    return {"seed": run.seed, "matrix": seen, "changed": changed}


def beside(matrix: Mapping[str, Any], before: Mapping[str, Any], loss: str, part: str) -> dict[str, Any]:
    """A cell with its share of all gradient that arrives at the part, and what it was in the reference."""
    cell, was = matrix[loss][part], before.get(loss, {}).get(part, {})
    total = sum(row.get(part, {}).get("norm", 0.0) for row in matrix.values())
    share = cell["norm"] / total if total else 0.0
    return {**cell, "share": share, "was": was.get("state"), "was_norm": was.get("norm")}


def cost(runs: Sequence[Run], ended: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """Medians over the runs, and over the reference's in the same seed. Step times of separate runs are noisy."""

    def median(key: str) -> float | None:
        values = [run.result[key] for run in runs if run.result.get(key) is not None]
        return statistics.median(values) if values else None

    out: dict[str, Any] = {}
    for key in ("step_time", "saved_bytes", "graph_nodes", "peak_memory"):
        ratios = [a.result[key] / r.result[key] for a, r in ended if a.result.get(key) and r.result.get(key)]
        out[key] = median(key)
        out[f"{key}_ratio"] = statistics.median(ratios) if ratios else None
        out |= {"step_time_ratios": ratios} if key == "step_time" else {}
    return out | {"step_time_is": "medians of separate runs: noisy"}


def interleaved(measured: Mapping[str, Any] | None, name: str, reference: str) -> dict[str, Any]:
    """Step times that benchmarks/arms.py measured in one process, in the place of those of separate runs."""
    if not measured or measured["reference"] != reference or name not in measured["arms"]:
        return {}
    figures = measured["arms"][name]
    said = f"medians of {measured['repeats']} interleaved turns of {measured['steps']} steps in one process"
    ratios = {"step_time_ratio": figures["ratio"], "step_time_ratios": figures["ratios"]}
    return {"step_time": figures["step_time"], **ratios, "step_time_is": said}


def spread(runs: Iterable[Run]) -> dict[str, dict[str, list[float]]]:
    """By tag: the steps that every seed has, if any, with mean, lowest and highest value over the seeds."""
    curves = [run.curves for run in runs]
    out: dict[str, dict[str, list[float]]] = {}
    for tag in dict.fromkeys(tag for curve in curves for tag in curve):
        drawn = [dict(curve[tag]) for curve in curves if tag in curve]
        steps = sorted(set.intersection(*map(set, drawn)))
        if not steps:
            continue
        rows = [[curve[step] for curve in drawn] for step in steps]
        mean, low, high = ([f(row) for row in rows] for f in (statistics.fmean, min, max))
        out[tag] = {"steps": steps, "mean": mean, "low": low, "high": high}
    return out


def notes(runs: Sequence[Run]) -> list[str]:
    """What makes the runs unequal beside their arms, and what could not be read of them."""
    out = []
    for what, of in (
        ("recipe", lambda r: r.get("recipe")),
        ("code version", lambda r: (r.get("commit") or "unknown")[:12]),
        ("torch version", lambda r: r.get("versions", {}).get("torch")),
        ("number of threads", lambda r: r.get("threads")),
    ):
        kinds = sorted({str(of(run.result)) for run in runs})
        if len(kinds) > 1:
            fair = "only metrics that both have are compared" if what == "recipe" else "differences may come from that"
            out.append(f"runs of more than one {what} ({', '.join(kinds)}): {fair}")
    if any((run.result.get("commit") or "").endswith("+") for run in runs):
        out.append("some runs were made from a tree with uncommitted changes (commit ends in +)")
    return out + [f"{run.folder}: {note}" for run in runs for note in run.notes]


def arm_notes(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Contracts that are broken although no boundary is flipped."""
    return [
        f"{arm['name']}: contract broken, though no boundary is flipped: {arm['contract']['broken']}"
        for arm in arms
        if arm["contract"] and arm["contract"]["broken"] and not arm["contract"]["flipped"]
    ]


def curve_notes(arms: Arms) -> list[str]:
    """Curves that cannot be drawn because the seeds of an arm were logged at different steps."""
    out = []
    for name, runs in arms.items():
        tags = {tag for run in runs.values() for tag in run.curves} - set(spread(runs.values()))
        out += [f"{name}: its seeds were logged at no common step: {', '.join(sorted(tags))} not drawn"] if tags else []
    return out
