"""What the arms of a comparison switch: each cut and each other choice, and which arms make it otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stopgrad.cuts.strategies import flipped

if TYPE_CHECKING:
    from stopgrad.compare import Comparison


def switches(comparison: Comparison, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every cut of the flow pictures, and every choice that some arm makes otherwise than the reference.

    Each has its ``name`` (a boundary's, else the cut's line), its ``choice`` in the reference, or null where it is no
    named one; by arm, with the choice there, ``flips`` (it passes what the reference stops, or the other way round; of
    what is no boundary, any other choice) and ``otherwise`` (another way to do the same); and ``alone``, the arms that
    flip it and choose nothing else otherwise.
    """
    arms = [arm["name"] for arm in comparison.content["arms"]]
    default: dict[str, Any] = {}
    for run in comparison.found.runs:
        default |= run.result.get("stop_default") or {}
    chosen = {arm["name"]: {**default, **(arm["stop"] or {})} for arm in comparison.content["arms"]}
    reference = chosen[comparison.content["reference"]]
    changed = {arm: {n for n in {**reference, **chosen[arm]} if chosen[arm].get(n) != reference.get(n)} for arm in arms}
    names = dict.fromkeys(
        name for arm in arms for name in chosen[arm] if any(name in each for each in changed.values())
    )
    nodes = [node for record in records.values() for node in record["nodes"]]
    cuts = [node for node in nodes if node["kind"] == "stop"] + [cut for node in nodes for cut in node.get("held", ())]
    names |= dict.fromkeys(cut["boundary"] for cut in cuts if cut["boundary"])
    names |= dict.fromkeys(sorted((cut["where"] for cut in cuts if not cut["boundary"]), key=_by_line))
    found = []
    for name in names:
        here = {arm: chosen[arm].get(name) for arm in arms if name in changed[arm]}
        flips = {arm: choice for arm, choice in here.items() if _is_flip(name, choice, reference.get(name))}
        found.append(
            {
                "name": name,
                "choice": reference.get(name),
                "flips": flips,
                "otherwise": {arm: choice for arm, choice in here.items() if arm not in flips},
                "alone": [arm for arm in flips if changed[arm] == {name}],
            }
        )
    return found


def _by_line(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return file, int(line) if line.isdigit() else 0


def _is_flip(name: str, choice: Any, usual: Any) -> bool:
    try:
        return bool(flipped({name: str(choice)}, {name: str(usual)}, [name]))
    except ValueError:  # a choice that is no way to stop a gradient, such as when gradients are zeroed
        return True
