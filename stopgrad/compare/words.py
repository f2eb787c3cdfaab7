"""The comparison in words: a sentence for each arm, a table for the terminal, a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NEAR = 0.05  # a step time within so much of the reference's is called the same


def number(value: float | None, sign: bool = False) -> str:
    """Four digits at most: ``0.31``, ``969.6``, ``3.4e+04``."""
    if value is None:
        return "-"
    plus = "+" if sign else ""
    if math.isfinite(value) and value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:{plus}.2g}"
    return f"{value:{plus}.4g}"


def joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(arm: Mapping[str, Any], reference: Mapping[str, Any], declared: Mapping[str, Any]) -> str:
    """What happened in one arm, in one plain sentence."""
    verdict = arm["verdict"]
    if verdict == "raised":
        return f"PyTorch refused: {arm['message']}."
    if arm["name"] == reference["name"]:
        values = "; ".join(values_words(arm, name) for name in declared if name in arm["metrics"])
        return f"the reference{f': {values}' if values else ''}{'; broken' if verdict == 'broken' else ''}."
    opened = [c for c in arm["flow"]["changed"] if c["is"] == "open"]
    parts = [flow_words(arm["flow"]) if arm["flow"]["changed"] else strength_words(arm["flow"])]
    identical = verdict == "identical" or reference["name"] in arm["same_weights_as"]
    parts.append(weights_words(arm, identical, bool(opened)))
    if verdict == "broken":
        parts.append(f"{broken_words(arm, declared)}: broken")
    elif verdict in ("different_training", "same_result", "cannot_tell"):
        what = {
            "different_training": "",
            "same_result": "the same result: ",
            "cannot_tell": "this cannot be told yet: ",
        }
        parts.append(what[verdict] + "; ".join(arm["because"]))
    if verdict == "identical" or not arm["flow"]["changed"]:
        parts.append(cost_words(arm["cost"]))
    return "; ".join(part for part in parts if part) + "."


def flow_words(flow: Mapping[str, Any]) -> str:
    """Which loss newly reaches which part, and which it no longer reaches; boundaries only where no part tells."""
    parts = [c for c in flow["changed"] if not c["part"].startswith("stop.")] or flow["changed"]
    said = []
    for change in parts:
        loss, part = change["loss"], change["part"]
        cell = flow["matrix"][loss][part]
        if change["is"] == "open":
            share = f", {cell['share']:.0%} of its gradient" if cell.get("share", 1) < 1 else ""
            said.append(f"{loss} reached {part} (|g| {cell['norm']:.2g}{share})")
        elif change["was"] == "open":
            said.append(f"{loss} no longer reached {part} ({change['is']})")
        else:
            said.append(f"{loss} to {part} is {change['is']} instead of {change['was']}")
    return joined(said)


def strength_words(flow: Mapping[str, Any]) -> str:
    """Where no cell has another state: the gradient whose norm at the first batch differs most, if it does by half."""
    found = [
        (abs(math.log(cell["norm"] / cell["was_norm"])), loss, part, cell["norm"] / cell["was_norm"])
        for loss, row in (flow["matrix"] or {}).items()
        for part, cell in row.items()
        if cell["state"] == cell["was"] == "open" and cell["norm"] > 0 and cell["was_norm"] > 0
    ]
    far, loss, part, ratio = max(found, default=(0.0, "", "", 1.0))
    if not far > math.log(1.5):
        return ""
    return f"the same losses reach the same parts, but {loss}'s gradient at {part} begins {ratio:.2g} times as strong"


def weights_words(arm: Mapping[str, Any], identical: bool, opened: bool) -> str:
    """Whether the weights are the same, and if not from which step and tensor on."""
    if identical:
        if opened:
            return "no step used it (it was zeroed in time), so the weights are identical"
        return "the weights are identical, bit for bit"
    first = arm["first_difference"]
    if first is None:
        return "the weights differ" if arm["seeds_paired"] else ""
    since = (
        f"from step {first['step']}" if first["exact"] else f"from a step between {first['after']} and {first['step']}"
    )
    more = f" and {first['tensors'] - 1} more" if first["tensors"] > 1 else ""
    return f"the weights differ {since} on, first in {first['tensor']}{more}"


def broken_words(arm: Mapping[str, Any], declared: Mapping[str, Any]) -> str:
    """The metrics that crossed their line, with the line."""
    said = []
    for name, rule in declared.items():
        values = list(arm["metrics"].get(name, {}).get("values", {}).values())
        for side, beyond in (("broken_above", max), ("broken_below", min)):
            line = rule.get(side)
            if values and line is not None and beyond([*values, line]) != line:
                said.append(f"{values_words(arm, name)}, {side.removeprefix('broken_')} the line {number(line)}")
    return joined(said) if said else arm["because"][0].partition(": ")[2]


def values_words(arm: Mapping[str, Any], name: str) -> str:
    values = arm["metrics"][name]["values"].values()
    return f"{name} {' '.join(number(value) for value in values)}"


def cost_words(cost: Mapping[str, Any]) -> str:
    """The step's price: time where it can be told, and saved bytes and graph nodes where they differ."""
    said = [time_words(cost)] if time_words(cost) else []
    for key, what in (("saved_bytes", "the bytes saved for backward"), ("graph_nodes", "the graph nodes")):
        ratio = cost.get(f"{key}_ratio")
        if ratio is not None and abs(ratio - 1) >= 0.005:
            said.append(f"{ratio:.2f} times {what}")
    return f"the step costs {joined(said)}" if said else ""


def time_words(cost: Mapping[str, Any]) -> str:
    """How many times the reference's step time; nothing where separate runs do not agree on the side of 1."""
    ratios, ratio = cost.get("step_time_ratios") or [], cost.get("step_time_ratio")
    if ratio is None:
        return ""
    same = abs(ratio - 1) <= NEAR
    if "noisy" not in cost["step_time_is"]:
        return "the same time" if same else f"{ratio:.2f} times the time"
    if len(ratios) < 2 or not (same or min(ratios) > 1 + NEAR or max(ratios) < 1 - NEAR):
        return ""
    return "about the same time" if same else f"about {ratio:.2f} times the time"


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
    table = [["arm", "verdict", metric or "metric", "differs from step", "step time", "saved bytes", "graph nodes"]]
    for arm in comparison["arms"]:
        values = arm["metrics"].get(metric, {}).get("values", {}).values()
        first, cost = arm["first_difference"], arm["cost"]
        since = "" if first is None else str(first["step"]) if first["exact"] else f"{first['after']}..{first['step']}"
        ratios = [cost[f"{key}_ratio"] for key in ("step_time", "saved_bytes", "graph_nodes")]
        shown = " ".join(number(value) for value in values)
        table.append([arm["name"], verdict_words(arm), shown, since, *(f"{r:.2f}x" if r else "" for r in ratios)])
    return table


def text_table(comparison: Mapping[str, Any]) -> str:
    """For the terminal: the table, what was left out, and the sentences."""
    table = rows(comparison)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    lines += ["", *(f"{arm['name']}: {arm['sentence']}" for arm in comparison["arms"][1:])]
    lines += [f"note: {note}" for note in comparison["notes"]]
    lines += [f"left out: {each['path']}: {each['reason']}" for each in comparison["left_out"]]
    return "\n".join(lines)


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: sentences, table, and for each arm what its verdict rests on."""
    seeds = ", ".join(map(str, comparison["seeds"]))
    heading, *body = rows(comparison)
    lines = [f"# {comparison['recipe']}: {len(comparison['arms'])} arms against `{comparison['reference']}`", ""]
    lines += [f"Seeds {seeds}. Step times are medians of separate runs, and noisy.", ""]
    lines += [f"- `{arm['name']}`: {arm['sentence']}" for arm in comparison["arms"]]
    lines += ["", f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in body]
    for arm in comparison["arms"][1:]:
        lines += ["", f"## {arm['name']}: {verdict_words(arm)}", ""]
        lines += [f"- {reason}" for reason in arm["because"]] + flow_lines(arm["flow"])
        angles = [f"{g} {number(c)}" for g, c in arm["gradient_cosine"].items()]
        lines += [f"- cosine with the reference's first gradient: {', '.join(angles)}"] if angles else []
        if arm["distance"]:
            step, far = arm["distance"][-1]
            lines.append(
                f"- distance of the weights from the reference's, over their norm, at step {step}: {number(far)}"
            )
    lines += [""] + [f"- note: {note}" for note in comparison["notes"]]
    lines += [f"- left out: {each['path']}: {each['reason']}" for each in comparison["left_out"]]
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
