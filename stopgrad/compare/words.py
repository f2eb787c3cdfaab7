"""The comparison in words: a sentence for each arm, a table for the terminal, a page of Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

NEAR = 0.05  # a step time within so much of the reference's is called the same
MOST = 2  # settings, or metrics, that a sentence names


def number(value: float | None, sign: bool = False) -> str:
    """Three digits at most: ``0.31``, ``970``, ``34000``, ``3.4e+22``."""
    if value is None:
        return "-"
    plus = "+" if sign else ""
    if not math.isfinite(value) or (value != 0 and not 1e-3 <= abs(value) < 1e5):
        return f"{value:{plus}.2g}"
    return f"{float(f'{value:.3g}'):{plus}g}"


def joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def first_of(parts: Sequence[str]) -> str:
    """The first ``MOST``, and how many more there are."""
    more = len(parts) - MOST
    return joined([*parts[:MOST], f"{more} more"]) if more > 0 else joined(parts)


def sentence(arm: Mapping[str, Any], reference: Mapping[str, Any], declared: Mapping[str, Any]) -> str:
    """What happened in one arm, in one plain sentence."""
    verdict = arm["verdict"]
    if verdict == "raised":
        return f"raised: {arm['message']}."
    if arm is reference:
        values = "; ".join(values_words(arm, name) for name in declared if name in arm["metrics"])
        return f"the reference: {outcome_words(arm, reference, declared) or values or 'no metric'}."
    identical = verdict == "identical" or reference["name"] in arm["same_weights_as"]
    strength = "" if identical else strength_words(arm["flow"])  # it was then another step that was measured
    parts = [settings_words(arm["settings"]), flow_words(arm["flow"]) or strength]
    opened = identical and any(change["is"] == "open" for change in arm["flow"]["changed"])
    parts.append("no step uses it" if opened else "")
    parts.append("identical weights" if identical else weights_words(arm))
    if identical and verdict == "broken" == reference["verdict"]:
        parts.append(f"{'diverged' if arm['diverged'] else 'broken'} as the reference did")
    else:
        parts.append(outcome_words(arm, reference, declared))
    if identical or not arm["flow"]["changed"]:
        parts.append(cost_words(arm["cost"]))
    return "; ".join(part for part in parts if part) + "."


def settings_words(settings: Mapping[str, Sequence[Any]]) -> str:
    """What else than its cuts the arm has otherwise than the reference."""
    return f"with {first_of([f'{key}={here}' for key, (here, _) in settings.items()])}" if settings else ""


def flow_words(flow: Mapping[str, Any]) -> str:
    """Which loss newly reaches which part, and which it no longer reaches; boundaries only where no part tells."""
    parts = [c for c in flow["changed"] if not c["part"].startswith("stop.")] or flow["changed"]
    said = []
    for change in parts:
        loss, part = change["loss"], change["part"]
        cell = flow["matrix"][loss][part]
        if change["is"] == "open":
            share = f" ({cell['share']:.0%} of its gradient)" if cell.get("share", 1) < 0.995 else ""
            said.append(f"{loss} reaches {part}{share}")
        elif change["was"] == "open":
            said.append(f"{loss} no longer reaches {part}")
        else:
            said.append(f"{loss} to {part} is {change['is']} instead of {change['was']}")
    return joined(said) if said else ""


def strength_words(flow: Mapping[str, Any]) -> str:
    """Where no cell has another state: the gradient whose norm at the first batch differs most, if it does by half."""
    if flow["changed"]:
        return ""
    found = [
        (abs(math.log(cell["norm"] / cell["was_norm"])), loss, part, cell["norm"] / cell["was_norm"])
        for loss, row in (flow["matrix"] or {}).items()
        for part, cell in row.items()
        if cell["state"] == cell["was"] == "open" and cell["norm"] > 0 and cell["was_norm"] > 0
    ]
    far, loss, part, ratio = max(found, default=(0.0, "", "", 1.0))
    return f"{loss}'s gradient at {part} begins {ratio:.2g}x as strong" if far > math.log(1.5) else ""


def weights_words(arm: Mapping[str, Any]) -> str:
    """From which step on the weights differ, and the tensor where it is one alone; or up to which they are equal."""
    first = arm["first_difference"]
    if first is None and arm["seeds_paired"]:
        return "weights differ"
    if first is None:
        return f"equal weights up to step {arm['distance'][-1][0]}" if arm["distance"] else ""
    since = f"from step {first['step']}" if first["exact"] else f"between steps {first['after']} and {first['step']}"
    alone = f", in {first['tensor']} alone" if first["tensors"] == 1 < first["of"] else ""
    return f"weights differ {since}{alone}{parting_words(arm['parting'])}"


def parting_words(parting: Mapping[str, Mapping[str, float | None]]) -> str:
    """The gradient that turned or changed its length most, at the step from which the weights differ."""
    cosines = {group: each["cosine"] for group, each in parting.items() if each["cosine"] is not None}
    group = min(cosines, key=lambda name: cosines[name], default=None)
    if group is None or (cosines[group] > 0.9999 and abs((parting[group]["norm_ratio"] or 0) - 1) < 1e-3):
        return ""
    return f" ({group}'s gradient: cosine {number(cosines[group])}, {times(parting[group]['norm_ratio'])} as long)"


def outcome_words(arm: Mapping[str, Any], reference: Mapping[str, Any], declared: Mapping[str, Any]) -> str:
    """What came of it, by the verdict."""
    told = {name: m["difference"] for name, m in arm["metrics"].items() if name in declared and m.get("difference")}
    match arm["verdict"]:
        case "broken":
            return diverged_words(arm) or f"broken: {broken_words(arm, declared)}"
        case "different_training":
            if reference["diverged"]:
                metric = next(iter(reference["diverged"].values()))["metric"]
                return f"does not diverge{f': {values_words(arm, metric)}' if metric in arm['metrics'] else ''}"
            return first_of([difference_words(n, d, "95") for n, d in told.items() if d["conclusion"] == "different"])
        case "same_result":
            said = [difference_words(name, d, "90") for name, d in told.items()]
            return f"same result: {said[0] if len(said) == 1 else f'{len(said)} metrics within their margins'}"
        case "cannot_tell":
            unclear = {name: d for name, d in told.items() if d["conclusion"] == "cannot_tell"}
            return unclear_words(unclear) if unclear else f"cannot be told: {arm['because'][0]}"
    return ""


def diverged_words(arm: Mapping[str, Any]) -> str:
    """What diverged, and by which step it had in all seeds of which it did."""
    found = list(arm["diverged"].values())
    if not found:
        return ""
    steps = [each["step"] for each in found]
    when = "" if None in steps else f" {'at' if all(e['exact'] for e in found) else 'by'} step {max(steps)}"
    some = f" in {len(found)} of {len(arm['runs'])} seeds" if len(found) < len(arm["runs"]) else ""
    return f"{first_of(list(dict.fromkeys(each['metric'] for each in found)))} diverged{when}{some}"


def broken_words(arm: Mapping[str, Any], declared: Mapping[str, Any]) -> str:
    """The metrics that crossed their line, with the line."""
    said = []
    for name, rule in declared.items():
        values = list(arm["metrics"].get(name, {}).get("values", {}).values())
        for side, farthest in (("above", max), ("below", min)):
            line = rule.get(f"broken_{side}")
            if values and line is not None and farthest([*values, line]) != line:
                said.append(f"{values_words(arm, name)}, {side} {number(line)}")
    return joined(said) if said else arm["because"][0].partition(": ")[2]


def values_words(arm: Mapping[str, Any], name: str) -> str:
    """A metric's value in each seed; once where they look the same, and from lowest to highest where they are many."""
    values = list(arm["metrics"][name]["values"].values())
    said = [number(value) for value in values]
    if len(set(said)) == 1:
        return f"{name} {said[0]}"
    return f"{name} {' '.join(said)}" if len(said) <= 4 else f"{name} {number(min(values))} to {number(max(values))}"


def difference_words(name: str, d: Mapping[str, Any], level: str) -> str:
    """``frechet +3.2 ± 1.1``: the mean difference, and half of its 95% (or 90%) interval."""
    low, high = (d["low"], d["high"]) if level == "95" else (d["low90"], d["high90"])
    return f"{name} {number(d['mean'], sign=True)} ± {float(f'{(high - low) / 2:.2g}'):g}"


def unclear_words(unclear: Mapping[str, Any]) -> str:
    """What so many seeds cannot tell, and how many would."""
    n = len(next(iter(unclear.values()))["values"])
    needed = [d["seeds_needed"] for d in unclear.values()]
    if n < 2:
        means = [f"{name} {number(d['mean'], sign=True)}" for name, d in unclear.items()]
        return f"1 seed cannot tell: {first_of(means)}"
    more = f"; about {max(needed)} would" if None not in needed else ""
    return f"{n} seeds cannot tell: {first_of([difference_words(k, d, '95') for k, d in unclear.items()])}{more}"


def cost_words(cost: Mapping[str, Any]) -> str:
    """A step's price where it differs: time where it can be told, saved bytes and graph nodes."""
    said = [time_words(cost)] if time_words(cost) else []
    for key, what in (("saved_bytes", "saved bytes"), ("graph_nodes", "graph nodes")):
        ratio = cost.get(f"{key}_ratio")
        if ratio is not None and abs(ratio - 1) >= 0.005:
            said.append(f"{times(ratio)} {what}")
    return ", ".join(said)


def times(ratio: float | None) -> str:
    """``1.32x``; nothing where it is not known."""
    return "" if ratio is None else f"{ratio:.2f}x" if ratio >= 0.005 else "<0.01x"


def time_words(cost: Mapping[str, Any]) -> str:
    """How many times the reference's step time; nothing where it is the same, or separate runs do not agree."""
    ratios, ratio = cost.get("step_time_ratios") or [], cost.get("step_time_ratio")
    if ratio is None or abs(ratio - 1) <= NEAR:
        return ""
    agree = len(ratios) > 1 and (min(ratios) > 1 + NEAR or max(ratios) < 1 - NEAR)
    return f"{times(ratio)} time" if agree or "noisy" not in cost["step_time_is"] else ""


def contract_word(contract: Mapping[str, Any] | None) -> str:
    """``kept``, ``broken`` where a flipped boundary explains it, ``unexpected`` where none does."""
    if contract is None:
        return ""
    return "kept" if not contract["broken"] else "broken" if contract["flipped"] else "unexpected"


def verdict_words(arm: Mapping[str, Any]) -> str:
    """The verdict; and the one that was declared, where it came out otherwise."""
    expected = arm["expected"]
    return arm["verdict"] if expected in (None, arm["verdict"]) else f"{arm['verdict']} (expected {expected})"


def headline(comparison: Mapping[str, Any]) -> str:
    """The first metric that the recipe declares and some arm has, or nothing."""
    names = [n for n in comparison["metrics_declared"] if any(n in arm["metrics"] for arm in comparison["arms"])]
    return names[0] if names else ""


def rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The table: a heading, and a row an arm."""
    metric = headline(comparison)
    table = [["arm", "verdict", "contract", metric or "metric", "from step", "time", "bytes", "nodes"]]
    for arm in comparison["arms"]:
        first, cost = arm["first_difference"], arm["cost"]
        since = "" if first is None else str(first["step"]) if first["exact"] else f"{first['after']}..{first['step']}"
        ratios = [times(cost[f"{key}_ratio"]) for key in ("step_time", "saved_bytes", "graph_nodes")]
        shown = values_words(arm, metric).removeprefix(f"{metric} ") if metric in arm["metrics"] else ""
        table.append([arm["name"], verdict_words(arm), contract_word(arm["contract"]), shown, since, *ratios])
    return table


def text_table(comparison: Mapping[str, Any], width: int | None = None) -> str:
    """For the terminal: the table, what was left out, and the sentences, wrapped at ``width`` columns."""
    columns = [*zip(*rows(comparison), strict=True)]
    if comparison.get("losses"):  # of a script, of which less is known
        columns = [column for column in columns if any(column[1:])]
    table = [*zip(*columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    told = [f"{arm['name']}: {arm['sentence']}" for arm in comparison["arms"] if arm["verdict"] != "reference"]
    told += [f"note: {note}" for note in comparison["notes"]] + left_out(comparison)
    return "\n".join([*lines, "", *(wrapped(text, width) for text in told)])


def wrapped(text: str, width: int | None) -> str:
    plain = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}
    return text if width is None else textwrap.fill(text, width, **plain)


def left_out(comparison: Mapping[str, Any]) -> list[str]:
    return [f"left out: {each['path']}: {each['reason']}" for each in comparison["left_out"]]


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: sentences, table, and for each arm what its verdict rests on."""
    seeds = ", ".join(map(str, comparison["seeds"]))
    heading, *body = rows(comparison)
    lines = [f"# {comparison['recipe']}: {len(comparison['arms'])} arms against `{comparison['reference']}`", ""]
    lines += [f"Seeds {seeds}. Time, bytes saved for backward and graph nodes: of a step, over the reference's."]
    lines += ["Times are medians of separate runs, and noisy.", ""]
    lines += [f"- `{arm['name']}`: {arm['sentence']}" for arm in comparison["arms"]]
    lines += ["", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in body]
    for arm in comparison["arms"][1:]:
        lines += ["", f"## {arm['name']}: {verdict_words(arm)}", ""]
        lines += [f"- {reason}" for reason in arm["because"]] + flow_lines(arm["flow"])
        if first := arm["first_difference"]:
            since, of = weights_words(arm).partition(",")[0], f"{first['tensors']} of {first['of']} tensors"
            lines.append(f"- {since}, first in {first['tensor']}; {of}")
            for group, each in arm["parting"].items():
                said = f"cosine {number(each['cosine'])}, {times(each['norm_ratio']) or '-'} as long"
                lines.append(f"- the gradient of {group} at that step, beside the reference's: {said}")
        angles = [f"{g} {number(c)}" for g, c in arm["gradient_cosine"].items()]
        lines += [f"- cosine with the reference's first gradient: {', '.join(angles)}"] if angles else []
        if arm["distance"]:
            step, far = arm["distance"][-1]
            lines.append(
                f"- distance of the weights from the reference's, over their norm, at step {step}: {number(far)}"
            )
    lines += [""] + [f"- note: {note}" for note in comparison["notes"]]
    lines += [f"- {each}" for each in left_out(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def flow_lines(flow: Mapping[str, Any]) -> list[str]:
    """The flow matrix as a Markdown table; cells that differ from the reference's are bold, with what they were."""
    if not flow["matrix"]:
        return []
    was = {(c["loss"], c["part"]): c["was"] for c in flow["changed"]}
    parts = list(dict.fromkeys(part for cells in flow["matrix"].values() for part in cells))
    lines = ["", f"| loss | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for loss, cells in flow["matrix"].items():
        shown = []
        for part in parts:
            cell = cells.get(part, {"state": "", "norm": 0.0})
            words = f"{cell['state']} {number(cell['norm'])}" if cell["state"] == "open" else cell["state"]
            shown.append(f"**{words}** (was {was[loss, part]})" if (loss, part) in was else words)
        lines.append(f"| {loss} | {' | '.join(shown)} |")
    return [*lines, ""]


def plain(value: Any) -> Any:
    """For strict JSON: numbers that are not finite become ``"nan"``, ``"inf"`` and ``"-inf"``, keys become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value
