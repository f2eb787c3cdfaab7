"""Whether a run diverged, and by which step: what is known of it, and no more."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stopgrad.compare.read import Run

ENDED_BY = "NonFiniteLoss"  # what stops a run at the step at which a loss is no finite number
FAR = 100  # times its line, and
GROWN = 10  # times what it was: such a metric diverged
BLIND = 1e6  # times its line, where there is no curve to see it grow


def divergence(run: Run, declared: Mapping[str, Any]) -> dict[str, Any] | None:
    """What diverged, ``metric``, and the ``step`` at which (``exact``) or by which it had; None if nothing did.

    A loss or a declared metric that is no finite number; a declared metric that is far beyond its line and has grown
    to there.
    """
    if run.result.get("error") == ENDED_BY:
        found = re.match(r"(\S+) is \S+ at step (\d+)", str(run.result.get("message")))
        metric, step = found.groups() if found else ("a loss", None)
        return {"metric": metric, "step": int(step) if step else None, "exact": True}
    if not run.finished:
        return None
    for name in [*declared, *losses(run)]:
        value = run.metrics.get(name)
        if value is not None and _diverged(value, [v for _, v in run.curves.get(name, [])], declared.get(name, {})):
            rule = declared.get(name, {})
            step = next((step for step, v in run.curves.get(name, []) if beyond(v, rule)), None)
            return {"metric": name, "step": step, "exact": False}
    return None


def losses(run: Run) -> list[str]:
    """The metrics that are losses: by their names, or because the run says so."""
    said = run.result.get("losses", ())
    return [name for name in run.metrics if name.startswith("loss") or name in said]


def beyond(value: float, rule: Mapping[str, Any]) -> str:
    """``above`` or ``below`` where the value has crossed that line of its rule; ``no number``; or nothing."""
    if not math.isfinite(value):
        return "no number"
    if value > rule.get("broken_above", math.inf):
        return "above"
    return "below" if value < rule.get("broken_below", -math.inf) else ""


def _diverged(value: float, curve: list[float], rule: Mapping[str, Any]) -> bool:
    side = beyond(value, rule)
    if side in ("", "no number"):
        return bool(side)
    line = abs(rule[f"broken_{side}"])
    if len(curve) < 2:
        return abs(value) > BLIND * line > 0
    return abs(value) > FAR * line > 0 and abs(value) > GROWN * abs(curve[0])
