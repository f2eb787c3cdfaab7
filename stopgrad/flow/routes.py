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

from torch import Tensor

from stopgrad.flow.carried import Carried, Way
from stopgrad.flow.labels import Labels, folded
from stopgrad.flow.sites import Recorder
from stopgrad.flow.values import LIVE, Values, place

Record = dict[str, Any]
MOST_LOSSES = 12  # that are drawn: of more, neighbours are one
MOST_LOOKED = 50_000  # nodes of autograd's graphs, in one audit: the norms behind further losses are not measured
_MOST_CUTS = 3  # that one bar tells; of more, how many


class Routes:
    """What an audit notes so that it can be drawn.

    Attributes:
        carried: for each loss, the norm on each way that was measured.
        whole: for each loss, whether its ways could all be measured.
        learnt: for each loss, the norm of what arrived at the parameters of each part.
    """

    def __init__(self, labels: Labels, recorder: Recorder) -> None:
        self.labels = labels
        self.strategies = recorder.strategies
        self.carried: dict[str, dict[Way, float]] = {}
        self.whole: dict[str, bool] = {}
        self.learnt: dict[str, dict[str, float]] = {}
        self._recorder = recorder
        self._looked = 0

    def watch(self, loss: Tensor) -> Carried | None:
        """Measure what the backward of a loss carries, until the answer is closed; None of too many losses."""
        if self._looked > MOST_LOOKED:
            return None
        carried = Carried(loss, "", self._of_node)
        self._looked += carried.looked
        return carried

    def _of_node(self, node: Any) -> Sequence[str]:
        variable = getattr(node, "variable", None)
        if variable is not None:
            label = self.labels.of_parameter(variable)
            return [label] if label else []
        value = self._recorder.tensors.nodes.value(node)
        return [] if value is None else self.labels.of(self._recorder.values, value)

    def note(self, name: str, norms: Mapping[int, float], parts: Mapping[int, Tensor]) -> None:
        """What arrived at parameters, by ``id``; of several reports of a loss, the largest."""
        squares: dict[str, float] = {}
        for key, norm in norms.items():
            label = self.labels.of_parameter(parts[key])
            squares[label] = squares.get(label, 0.0) + norm**2
        known = self.learnt.setdefault(name, {})
        for label, square in squares.items():
            known[label] = max(known.get(label, 0.0), math.sqrt(square))

    def note_carried(self, name: str, passed: Carried, scale: float = 1.0) -> None:
        known = self.carried.setdefault(name, {})
        self.whole[name] = self.whole.get(name, True) and passed.whole
        for way, norm in passed.norms(scale).items():
            known[way] = max(known.get(way, 0.0), norm)


# ---- the value graph, folded


class _Folding:
    """All ways between labels in a value graph, in time linear in its values.

    Of each value ``dep``, ``live`` and ``arrives`` hold the bits of the losses that depend on it, whose gradient
    reaches it, and whose gradient would reach it if it required any.
    """

    def __init__(self, values: Values, losses: Mapping[int, int], names: Sequence[str], labels: Labels) -> None:
        self._values, self._losses, self._names, self._labels = values, losses, names, labels
        self.nodes: dict[str, tuple[str, int]] = {}  # label -> kind, the first value
        self.cuts: dict[Any, int] = {}  # what tells a cut -> a value that makes it
        self.edges: dict[tuple[str, str, Any], list[int]] = {}  # from, to, cut -> losses that pass, that are stopped
        self.held: dict[tuple[str, Any], int] = {}  # part, cut at its own parameters -> losses that it stops
        self._back()
        self._forth()

    def _back(self) -> None:
        values, newest = self._values, max(self._losses, default=-1)
        self._dep, self._live, self._arrives = ([0] * (newest + 1) for _ in range(3))
        for index, bit in self._losses.items():
            self._dep[index] |= bit
            self._live[index] |= bit if values.flags[index] & LIVE else 0
            self._arrives[index] |= bit
        first, parents, flags = values.first, values.parents, values.flags
        for index in range(newest, -1, -1):
            dep, live = self._dep[index], self._live[index]
            if not dep:
                continue
            hop = flags[index] & LIVE and not values.cuts[index]
            # What is computed from constants alone would hand a gradient on, if one of them required any.
            constant = not (flags[index] & LIVE or values.cuts[index] or values.modes[index])
            constant = constant and values.op(index) != "freeze"  # which stops it
            for parent in parents[first[index] : first[index + 1]]:
                self._dep[parent] |= dep
                if hop:
                    self._arrives[parent] |= live
                    self._live[parent] |= live if flags[parent] & LIVE else 0
                elif constant:
                    self._arrives[parent] |= self._arrives[index]

    def _forth(self) -> None:
        values, labels = self._values, self._labels
        first, parents, flags, modes = values.first, values.parents, values.flags, values.modes
        leaves = bytearray(len(self._dep))  # made without a graph, and used where there is one
        for index, dep in enumerate(self._dep):
            if dep and not modes[index]:
                for parent in parents[first[index] : first[index + 1]]:
                    leaves[parent] = bool(modes[parent])
        for index in self._losses:
            leaves[index] = bool(modes[index])
        # For each value, where it comes from: (label, cut) -> the losses that are still to pass, or that are stopped.
        sources: list[dict[tuple[str, Any], int] | None] = [None] * len(self._dep)
        for index, dep in enumerate(self._dep):
            if not dep:
                continue
            incoming: dict[tuple[str, Any], int] = {}
            hop = flags[index] & LIVE and not values.cuts[index]
            chain = labels.of(values, index)
            each = parents[first[index] : first[index + 1]]
            for parent in each[:1] if len(chain) > 1 else each:  # what freeze held back is told of the part itself
                passes = hop and flags[parent] & LIVE
                for key, mask in (sources[parent] or {}).items():
                    mask = mask if key[1] is not None or passes else 0
                    incoming[key] = incoming.get(key, 0) | mask
            if index in self._losses:
                chain, kind = [self._names[self._losses[index].bit_length() - 1]], "loss"
            else:
                kind = "stop" if chain and chain[0].startswith("stop.") else "module"
            label = chain[0] if chain else ""
            if label:
                self._enter(label, kind, index, incoming)
                incoming = {(label, None): -1}
            if values.cuts[index] or leaves[index] or (len(chain) > 1 and not flags[index] & LIVE):
                key = values.key(each[-1] if len(chain) > 1 else index)
                self.cuts.setdefault(key, index)
                incoming = {(source, key): self._arrives[index] for source, _ in incoming}
            sources[index] = incoming

    def _enter(self, label: str, kind: str, index: int, incoming: Mapping[tuple[str, Any], int]) -> None:
        self.nodes.setdefault(label, (kind, index))
        for (source, cut), mask in incoming.items():
            if cut is None and source == label:
                continue
            if source == label and self._kind(cut) == "requires_grad":
                self.held[label, cut] = self.held.get((label, cut), 0) | mask
                continue
            edge = self.edges.setdefault((source, label, cut), [0, 0])
            edge[cut is not None] |= mask if cut is not None else mask & self._live[index]

    def _kind(self, cut: Any) -> str:
        return self._values.site(self.cuts[cut]).kind


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
    drawn = list(dict.fromkeys(groups.values()))
    bits = {name: 1 << drawn.index(groups[name]) for name in names}
    values = next(iter(flow.loss_values)).of
    losses: dict[int, int] = {}
    for value, name in flow.loss_values.items():
        losses[value.index] = bits[name]
    found = _Folding(values, losses, drawn, routes.labels)
    return _Writing(found, values, routes, groups, drawn).record(flow.boundaries)


class _Writing:
    """From the folded graph to the record."""

    def __init__(
        self, found: _Folding, values: Values, routes: Routes, groups: Mapping[str, str], drawn: Sequence[str]
    ) -> None:
        self._found, self._values, self._routes, self._drawn = found, values, routes, drawn
        self._norms: dict[str, dict[Way, float]] = {name: {} for name in drawn}
        self._learnt: dict[str, dict[str, float]] = {name: {} for name in drawn}
        self._whole = dict.fromkeys(drawn, True)
        for name, group in groups.items():
            _largest(self._norms[group], routes.carried.get(name, {}))
            _largest(self._learnt[group], routes.learnt.get(name, {}))
            self._whole[group] &= routes.whole.get(name, False)

    def record(self, boundaries: Sequence[str]) -> Record:
        nodes = {label: self._node(label, kind) for label, (kind, _) in self._found.nodes.items()}
        for loss, parts in self._learnt.items():
            for label, norm in parts.items():
                if label in nodes:
                    nodes[label]["learns"][loss] = norm
        edges: dict[tuple[str, str], dict[str, Any]] = {}
        by_cut: dict[Any, list[tuple[str, str, int]]] = {}
        for (source, to, cut), (passes, stopped) in self._found.edges.items():
            if cut is None or self._belongs(cut, source, to):
                edge = edges.setdefault((source, to), _edge(source, to))
                edge["losses"] |= self._carried(source, to, passes)
                if cut is not None and stopped:
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
            }
        shown = f"{label} (loss)" if kind == "loss" and label in self._routes.labels.modules.values() else label
        return {"id": label, "label": shown, "kind": kind, "learns": {}, "held": []}

    def _belongs(self, cut: Any, source: str, to: str) -> bool:
        """A cut that a boundary makes, before or behind its own node."""
        boundary = cut[3]
        return boundary is not None and f"stop.{boundary}" in (source.partition("@")[0], to.partition("@")[0])

    def _carried(self, source: str, to: str, passes: int) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = {}
        for i, loss in enumerate(self._drawn):
            norm = self._norms[loss].get((source, "" if to == loss else to))
            if norm is not None or (passes >> i & 1 and not self._whole[loss]):
                found[loss] = {"norm": norm}
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
            told = [self._cut(cut, _union(mask for _, _, mask in by_cut[cut])) for cut in cuts]
            told.sort(key=lambda each: not each["losses"])
            first, more = told[0], len(told) - 1
            label = f"{first['kind']}@{first['where']}>{','.join(targets)}"
            stop = {"id": label, "label": first["kind"] + (f" +{more}" if more else ""), "kind": "stop", "passes": []}
            nodes[label] = stop | {key: first[key] for key in ("boundary", "strategy", "where")}
            for source in sources:
                edges.setdefault((source, label), _edge(source, label))
            for target in targets:
                edge = edges.setdefault((label, target), _edge(label, target))
                for each in told[:_MOST_CUTS]:
                    _add_cut(edge, each)

    def _tell(self, node: dict[str, Any], leaving: Sequence[dict[str, Any]]) -> None:
        node["passes"] = list(dict.fromkeys(loss for edge in leaving for loss in edge["losses"]))


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


def _largest(known: dict[Any, float], new: Mapping[Any, float]) -> None:
    for key, norm in new.items():
        known[key] = max(known.get(key, 0.0), norm)


def merged(old: Record | None, new: Record) -> Record:
    """One record of two steps, of which each saw losses that the other did not, or saw them anew."""
    if old is None:
        return new
    nodes = {node["id"]: node for node in old["nodes"]}
    for node in new["nodes"]:
        known = nodes.setdefault(node["id"], node)
        if known is not node:
            _largest(known.get("learns", {}), node.get("learns", {}))
            for cut in node.get("held", ()):
                _add_cut(known, cut, "held")
            if "passes" in node:
                known["passes"] = list(dict.fromkeys([*known["passes"], *node["passes"]]))
    edges = {(edge["from"], edge["to"]): edge for edge in old["edges"]}
    for edge in new["edges"]:
        known = edges.setdefault((edge["from"], edge["to"]), edge)
        if known is not edge:
            for loss, of in edge["losses"].items():
                was = known["losses"].get(loss, {"norm": None})["norm"]
                known["losses"][loss] = {"norm": max(filter(lambda n: n is not None, (was, of["norm"])), default=None)}
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
