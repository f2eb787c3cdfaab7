"""What an audit notes so that it can be drawn, and the value graph folded to parts, boundaries and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stopgrad.flow.carried import Carried, Way
from stopgrad.flow.labels import Labels
from stopgrad.flow.sites import Recorder
from stopgrad.flow.values import LIVE, Values

MOST_LOOKED = 50_000  # nodes of autograd's graphs, in one audit: the norms behind further losses are not measured


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
        self._recorder: Recorder | None = recorder
        self._looked = 0

    def close(self) -> None:
        """The audit has ended: what it has noted is all."""
        self._recorder = None

    def watch(self, loss: Tensor) -> Carried:
        """Measure what the backward of a loss carries, until the answer is closed; nothing of too many losses."""
        carried = Carried(loss, "", self._of_node) if self._looked < MOST_LOOKED else Carried.nothing()
        self._looked += carried.looked
        return carried

    def _of_node(self, node: Any) -> Sequence[str]:
        variable = getattr(node, "variable", None)
        if variable is not None:
            label = self.labels.of_parameter(variable)
            return [label] if label else []
        assert self._recorder is not None
        value = self._recorder.tensors.nodes.value(node)
        return [] if value is None else self.labels.of(self._recorder.values, value)

    def note(self, name: str, norms: Mapping[int, float], parts: Mapping[int, Tensor]) -> None:
        """What arrived at parameters, by ``id``; of several reports of a loss, the largest."""
        squares: dict[str, float] = {}
        for key, norm in norms.items():
            label = self.labels.of_parameter(parts[key])
            squares[label] = squares.get(label, 0.0) + norm**2
        keep_largest(self.learnt.setdefault(name, {}), {label: math.sqrt(each) for label, each in squares.items()})

    def rename(self, old: str, new: str) -> None:
        """A loss has got another name."""
        notes: Any = (self.carried, self.whole, self.learnt)
        for known in notes:
            if old in known:
                known[new] = known.pop(old)

    def note_carried(self, name: str, passed: Carried, scale: float = 1.0) -> None:
        known = self.carried.setdefault(name, {})
        self.whole[name] = self.whole.get(name, True) and passed.whole
        keep_largest(known, passed.norms(scale))


def keep_largest(known: dict[Any, float], new: Mapping[Any, float]) -> None:
    """Of two norms the larger; NaN is larger than all."""
    for key, norm in new.items():
        both = (known.get(key, norm), norm)
        known[key] = math.nan if any(map(math.isnan, both)) else max(both)


class Folding:
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
            for parent in each:
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
            if source == label and (cut is None or kind == "stop"):
                continue
            mask &= self._live[index] | self._arrives[index]  # of what the cut stops, that which comes this way
            if source == label and self._kind(cut) == "requires_grad":
                self.held[label, cut] = self.held.get((label, cut), 0) | mask
                continue
            edge = self.edges.setdefault((source, label, cut), [0, 0])
            edge[cut is not None] |= mask if cut is not None else mask & self._live[index]

    def _kind(self, cut: Any) -> str:
        return self._values.site(self.cuts[cut]).kind
