"""A flow picture in words: for screen readers, and for those who would rather read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stopgrad.flow.layout import number
from stopgrad.flow.routes import Record


def flow_sentences(record: Record) -> list[str]:
    """What the picture shows: what each loss teaches, what is stopped and by which line, what is left open."""
    nodes = {node["id"]: node for node in record["nodes"]}
    told = []
    for loss in record["losses"]:
        taught = [
            f"{node['label']} (|g| {number(node['learns'][loss])})"
            for node in nodes.values()
            if loss in node.get("learns", {})
        ]
        told.append(f"{loss} reaches {listed(taught)}." if taught else f"{loss} reaches nothing.")
    for node in nodes.values():
        if node["kind"] == "stop":
            told += of_stop(node, record, nodes)
        for cut in node.get("held", ()):
            if cut["losses"]:
                told.append(f"{listed(cut['losses'])} leaves the weights of {node['label']} alone: {by(cut)}.")
    if record["uncrossed"]:
        told.append(f"Not crossed: {listed([f'stop.{name}' for name in record['uncrossed']])}.")
    return told


def of_stop(node: Mapping[str, Any], record: Record, nodes: Mapping[str, Any]) -> Iterator[str]:
    """What a boundary, or another cut, does."""
    cuts = [cut for e in record["edges"] if e["from"] == node["id"] for cut in e["cuts"]]
    losses = list(dict.fromkeys(loss for cut in cuts for loss in cut["losses"]))
    before = _parts_behind(node["id"], record, nodes)
    where = f" before {listed(before)}" if before else ""
    if losses:
        yield f"{listed(losses)} {'is' if len(losses) == 1 else 'are'} stopped{where} by {by(cuts[0])}."
    elif cuts:
        yield f"{by(cuts[0])} cuts{where}, where no gradient comes."
    if node["passes"] and node["boundary"]:
        reached = _parts_behind(node["id"], record, nodes, node["passes"])
        to = f" to {listed(reached)}" if reached else ""
        yield f"{by(node)} lets {listed(node['passes'])} through{to}."


def _parts_behind(id: str, record: Record, nodes: Mapping[str, Any], losses: Sequence[str] | None = None) -> list[str]:
    """The parts that a value comes from, past other boundaries; with ``losses``, those that their gradient reaches."""
    found, seen, stack = {}, {id}, [id]
    while stack:
        at = stack.pop(0)
        for edge in record["edges"]:
            start = edge["from"]
            if edge["to"] != at or start in seen or not (losses is None or set(losses) & edge["losses"].keys()):
                continue
            seen.add(start)
            if nodes[start]["kind"] == "stop":
                stack.append(start)
            else:
                found[nodes[start]["label"]] = None
    return [*found]


def by(cut: Mapping[str, Any]) -> str:
    if cut["boundary"] is None:
        return f"{cut['kind']} at {cut['where']}"
    return f"stop.{cut['boundary']} ({cut['strategy']}, {cut['where']})"


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
