"""The value flow of audited steps as a record that is drawn: parts, boundaries, losses, and what gradient goes between.

A record is what JSON can hold::

    {"nodes": [{"id", "label", "kind": "module|stop|loss", ...}],
     "edges": [{"from", "to", "value": true, "losses": {LOSS: {"norm"}}, "cuts": [CUT]}],
     "losses": [...], "uncrossed": [...]}

An edge goes the way of the value; the gradient of its ``losses`` goes back along it, with its norm, or null where that
was not measured. A cut is ``{"boundary", "strategy", "where", "kind", "losses"}``: those whose gradient it stops. What
cuts, or may cut, is a node of kind ``stop``; one that cuts stands in ``cuts`` of the edges that leave it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stopgrad.cuts.strategies import stops
from stopgrad.flow.carried import Way
from stopgrad.flow.folding import Folding, Routes, keep_largest
from stopgrad.flow.labels import folded
from stopgrad.flow.values import Values, place

Record = dict[str, Any]
MOST_LOSSES = 12  # that are drawn: of more, neighbours are one
_MOST_CUTS = 3  # that one bar tells; of more, how many


def flow_record(flow: Any) -> Record:
    """What an audit made with ``draw=True`` saw, as a record.

    Raises:
        ValueError: the audit was made without ``draw=True``, or no loss was reported.
    """
    routes: Routes | None = flow.routes
    if routes is None or not flow.loss_values:
        raise ValueError("flow_record: nothing to draw; use audit(..., draw=True) and report a loss")
    names = list(dict.fromkeys(flow.loss_values.values()))
    groups = folded(names, MOST_LOSSES)
    groups = {name: f"{group} (loss)" if group in routes.labels.drawn else group for name, group in groups.items()}
    drawn = list(dict.fromkeys(groups.values()))
    bits = {name: 1 << drawn.index(groups[name]) for name in names}
    values = next(iter(flow.loss_values)).of
    losses: dict[int, int] = {}
    for value, name in flow.loss_values.items():
        losses[value.index] = bits[name]
    found = Folding(values, losses, drawn, routes.labels)
    return _Writing(found, values, routes, groups, drawn).record(flow.boundaries)


class _Writing:
    """From the folded graph to the record."""

    def __init__(
        self, found: Folding, values: Values, routes: Routes, groups: Mapping[str, str], drawn: Sequence[str]
    ) -> None:
        self._found, self._values, self._routes, self._drawn = found, values, routes, drawn
        self._norms: dict[str, dict[Way, float]] = {name: {} for name in drawn}
        self._learnt: dict[str, dict[str, float]] = {name: {} for name in drawn}
        self._whole = dict.fromkeys(drawn, True)
        for name, group in groups.items():
            keep_largest(self._norms[group], routes.carried.get(name, {}))
            keep_largest(self._learnt[group], routes.learnt.get(name, {}))
            self._whole[group] &= routes.whole.get(name, False)

    def record(self, boundaries: Sequence[str]) -> Record:
        nodes = {label: self._node(label, kind) for label, (kind, _) in self._found.nodes.items()}
        for loss, parts in self._learnt.items():
            for label, norm in parts.items():
                if label in nodes:
                    nodes[label]["learns"][loss] = _plain(norm)
        edges: dict[tuple[str, str], dict[str, Any]] = {}
        by_cut: dict[Any, list[tuple[str, str, int]]] = {}
        for (source, to, cut), (passes, stopped) in self._found.edges.items():
            if cut is None or self._belongs(cut, source, to):
                edge = edges.setdefault((source, to), _edge(source, to))
                edge["losses"] |= self._carried(source, to, passes)
                if cut is not None and stopped and not _is_open(self._cut(cut, 0)):
                    _add_cut(edge, self._cut(cut, stopped))
            else:
                by_cut.setdefault(cut, []).append((source, to, stopped))
        for (label, cut), stopped in self._found.held.items():
            if stopped:
                _add_cut(nodes[label], self._cut(cut, stopped), "held")
        self._loose(nodes, edges, by_cut)
        for node in nodes.values():
            if node["kind"] == "stop" and node["boundary"]:
                self._tell(node, [e for (a, _), e in edges.items() if a == node["id"]])
        crossed = {node["boundary"] for node in nodes.values() if node["kind"] == "stop"}
        crossed |= {cut["boundary"] for node in nodes.values() for cut in node.get("held", ())}
        return {
            "nodes": list(nodes.values()),
            "edges": list(edges.values()),
            "losses": list(self._drawn),
            "uncrossed": [name for name in boundaries if name not in crossed],
        }

    def _node(self, label: str, kind: str) -> dict[str, Any]:
        if kind == "stop":
            name, _, where = label.partition("#")[0].partition("@")
            boundary = name.removeprefix("stop.")
            strategy = self._routes.strategies.get(boundary, "")
            return {
                "id": label,
                "label": name,
                "kind": kind,
                "boundary": boundary,
                "strategy": strategy,
                "where": where,
                "open": bool(strategy) and not stops(strategy),
            }
        return {"id": label, "label": label, "kind": kind, "learns": {}, "held": []}

    def _belongs(self, cut: Any, source: str, to: str) -> bool:
        """A cut that a boundary makes, before or behind its own node."""
        boundary = cut[3]
        return boundary is not None and f"stop.{boundary}" in (source.partition("@")[0], to.partition("@")[0])

    def _carried(self, source: str, to: str, passes: int) -> dict[str, dict[str, float | str | None]]:
        found: dict[str, dict[str, float | str | None]] = {}
        for i, loss in enumerate(self._drawn):
            norm = self._norms[loss].get((source, "" if to == loss else to))
            if norm is not None or (passes >> i & 1 and not self._whole[loss]):
                found[loss] = {"norm": _plain(norm)}
        return found

    def _names(self, mask: int) -> list[str]:
        return [name for i, name in enumerate(self._drawn) if mask >> i & 1]

    def _cut(self, cut: Any, stopped: int) -> dict[str, Any]:
        site = self._values.site(self._found.cuts[cut])
        strategy = self._routes.strategies.get(site.boundary or "", site.kind)
        kind = f"{site.kind} ({site.op})" if site.op and site.kind in ("no_derivative", "function") else site.kind
        return {
            "boundary": site.boundary,
            "strategy": strategy,
            "where": place(site.file, site.line),
            "kind": kind,
            "losses": self._names(stopped),
        }

    def _loose(
        self,
        nodes: dict[str, dict[str, Any]],
        edges: dict[tuple[str, str], dict[str, Any]],
        by_cut: Mapping[Any, Sequence[tuple[str, str, int]]],
    ) -> None:
        """Cuts that no boundary made: a node for each set of ways that they lie on."""
        alike: dict[Any, list[Any]] = {}
        for cut, ways in by_cut.items():
            key = tuple(sorted({a for a, _, _ in ways})), tuple(sorted({b for _, b, _ in ways}))
            alike.setdefault(key, []).append(cut)
        for (sources, targets), cuts in alike.items():
            cuts.sort(key=lambda cut: not _union(mask for _, _, mask in by_cut[cut]))
            first, more = self._cut(cuts[0], 0), len(cuts) - 1
            label = f"{first['kind']}@{first['where']}>{','.join(targets)}"
            shown = first["kind"] + (f" +{more}" if more else "")
            nodes[label] = {"id": label, "label": shown, "kind": "stop", "open": False, "passes": []}
            nodes[label] |= {key: first[key] for key in ("boundary", "strategy", "where")}
            for source in sources:
                edges.setdefault((source, label), _edge(source, label))
            for target in targets:
                edge = edges.setdefault((label, target), _edge(label, target))
                for cut in cuts[:_MOST_CUTS]:
                    _add_cut(edge, self._cut(cut, _union(mask for _, b, mask in by_cut[cut] if b == target)))

    def _tell(self, node: dict[str, Any], leaving: Sequence[dict[str, Any]]) -> None:
        node["open"] |= any(edge["losses"] for edge in leaving)  # freeze lets through what is not its own
        node["passes"] = list(dict.fromkeys(loss for edge in leaving for loss in edge["losses"]))


def _is_open(cut: Mapping[str, Any]) -> bool:
    """Of what crosses an open boundary nothing can be stopped there: it required no gradient before."""
    return cut["boundary"] is not None and not stops(cut["strategy"])


def _edge(source: str, to: str) -> dict[str, Any]:
    return {"from": source, "to": to, "value": True, "losses": {}, "cuts": []}


def _add_cut(holder: dict[str, Any], cut: dict[str, Any], key: str = "cuts") -> None:
    for known in holder[key]:
        if all(known[k] == cut[k] for k in ("boundary", "where", "kind")):
            known["losses"] = list(dict.fromkeys([*known["losses"], *cut["losses"]]))
            return
    holder[key].append(cut)


def _union(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _plain(norm: float | None) -> float | str | None:
    """What JSON can hold: ``inf`` and ``nan`` in words."""
    return norm if norm is None or math.isfinite(norm) else str(norm)


def _larger(one: float | str | None, other: float | str | None) -> float | str | None:
    """Of two norms the larger; one that is not finite before all others."""
    numbers = [norm for norm in (one, other) if isinstance(norm, float | int)]
    return next((norm for norm in (one, other) if isinstance(norm, str)), max(numbers, default=None))


def merged(old: Record | None, new: Record) -> Record:
    """One record of two steps, of which each saw losses that the other did not, or saw them anew."""
    if old is None:
        return new
    nodes = {node["id"]: node for node in old["nodes"]}
    for node in new["nodes"]:
        known = nodes.setdefault(node["id"], node)
        if known is not node:
            for loss, norm in node.get("learns", {}).items():
                known["learns"][loss] = _larger(known["learns"].get(loss), norm)
            for cut in node.get("held", ()):
                _add_cut(known, cut, "held")
            if "passes" in node:
                known["open"] |= node["open"]
                known["passes"] = list(dict.fromkeys([*known["passes"], *node["passes"]]))
    edges = {(edge["from"], edge["to"]): edge for edge in old["edges"]}
    for edge in new["edges"]:
        known = edges.setdefault((edge["from"], edge["to"]), edge)
        if known is not edge:
            for loss, of in edge["losses"].items():
                was = known["losses"].get(loss, {"norm": None})
                known["losses"][loss] = {"norm": _larger(was["norm"], of["norm"])}
            for cut in edge["cuts"]:
                _add_cut(known, cut)
    return {
        "nodes": list(nodes.values()),
        "edges": list(edges.values()),
        "losses": list(dict.fromkeys([*old["losses"], *new["losses"]])),
        "uncrossed": [name for name in old["uncrossed"] if name in new["uncrossed"]],
    }


def written(record: Record) -> str:
    """The record as JSON, with a line for each node and each edge."""
    each = [
        f'"{key}": [\n{_lines(value)}]' if key in ("nodes", "edges") and value else f'"{key}": {json.dumps(value)}'
        for key, value in record.items()
    ]
    return "{" + ",\n".join(each) + "}\n"


def _lines(items: Sequence[Any]) -> str:
    return ",\n".join(json.dumps(item, allow_nan=False) for item in items) + "\n"
