"""What the values of one loss tell beyond the matrix: who feeds whom, which of its terms are constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from stopgrad.flow.values import LIVE, CutSite, Trace, Values

_SUMS = {"add", "radd", "iadd", "add_", "sub", "rsub", "isub", "sub_"}
_SCALES = {"neg", "mul", "rmul", "imul", "mul_", "div", "truediv", "idiv", "div_", "float", "to", "alias"}

Line = tuple[str, int]


@dataclass
class Evidence:
    """Of one loss.

    Attributes:
        crossings: (upstream, downstream) -> the line where a live value of the one meets the parameters of the other.
        fed: (upstream, downstream) -> the cut by which a value of the one meets the parameters of the other.
        constants: terms of the loss that hang on a part and carry no gradient: the cut, and the parts.
        terms: of a loss that is a sum: the name of each term that has one, and its value.
        met: values that stand still by their name, and that an operation takes together with another live one.
        stopped: parameters, by place among the roots, on which the loss hangs without a gradient: the nearest cut.
    """

    crossings: dict[tuple[str, str], Line] = field(default_factory=dict)
    fed: dict[tuple[str, str], CutSite] = field(default_factory=dict)
    constants: list[tuple[CutSite, tuple[str, ...]]] = field(default_factory=list)
    terms: dict[str, int] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    stopped: dict[int, CutSite] = field(default_factory=dict)

    def merge(self, other: Evidence) -> None:
        self.crossings = other.crossings | self.crossings
        self.fed = other.fed | self.fed
        self.stopped = other.stopped | self.stopped
        self.constants += [constant for constant in other.constants if constant not in self.constants]

    def renamed(self, names: Mapping[str, str]) -> Evidence:
        """The same under other names of the parts."""
        pairs = lambda found: {(names.get(a, a), names.get(b, b)): v for (a, b), v in found.items()}  # noqa: E731
        constants = [(cut, tuple(names.get(part, part) for part in parts)) for cut, parts in self.constants]
        return replace(self, crossings=pairs(self.crossings), fed=pairs(self.fed), constants=constants)


def evidence(
    values: Values, loss: int, bits: Mapping[str, int], frozen: int, names: Mapping[int, str], still: Set[int]
) -> tuple[Evidence, Mapping[int, int]]:
    """Read it from the value graph, in time linear in what the loss was computed from.

    Args:
        loss: its value.
        bits: the bit of each part.
        frozen: the bits of the parts none of whose parameters requires grad.
        names: of values that the script's variables hold.
        still: values whose name says that they stand still.

    Returns:
        It, and of each value behind the loss the bits of the parts from which gradient would flow to it.
    """
    reading = _Reading(values, loss, bits, frozen, names, still)
    return reading.found, reading.live


class _Reading:
    def __init__(
        self, values: Values, loss: int, bits: Mapping[str, int], frozen: int, names: Mapping[int, str], still: Set[int]
    ) -> None:
        self.values, self.frozen, self.called, self.still = values, frozen, names, still
        self.names = {bit: name for name, bit in bits.items()}
        self.found = Evidence()
        self.live: dict[int, int] = {}  # value -> the parts from which gradient would flow to it
        self.hangs: dict[int, int] = {}  # value -> the places of the roots that it was computed from
        self.flows: dict[int, int] = {}  # and of those from which gradient would flow to it
        self._cuts: dict[int, CutSite | None] = {}
        order = self._ancestors(loss)
        for index in order:
            self._read(index)
        self._terms(loss)
        self._stops(loss, order)

    def _parents(self, index: int) -> list[int]:
        return list(self.values.parents[self.values.first[index] : self.values.first[index + 1]])

    def _ancestors(self, loss: int) -> list[int]:
        seen, stack = {loss}, [loss]
        while stack:
            fresh = [p for p in self._parents(stack.pop()) if p not in seen]
            seen.update(fresh)
            stack += fresh
        return sorted(seen)

    def _read(self, index: int) -> None:
        values = self.values
        if index < values.roots:
            self.live[index] = values.starts.get(index, 0) & ~self.frozen
            self.hangs[index] = self.flows[index] = 1 << index
            return
        parents, live, hangs, flows = self._parents(index), 0, 0, 0
        for parent in parents:
            live |= self.live[parent]
            hangs |= self.hangs[parent]
            flows |= self.flows[parent]
        is_live = values.flags[index] & LIVE and not values.cuts[index]
        self.live[index], self.flows[index] = (live, flows) if is_live else (0, 0)
        self.hangs[index] = hangs
        if is_live:
            for parent in self.still & set(parents):
                if any(self.live[other] for other in parents if other != parent):
                    self.found.met.add(parent)
        own = 0
        for parent in parents:
            if parent < values.roots:
                own |= values.starts.get(parent, 0)
        if not own:
            return
        for parent in parents:
            if parent < values.roots:
                continue
            for upstream in self._named(self.live[parent] & ~own if is_live else 0):
                for downstream in self._named(own):
                    self.found.crossings.setdefault((upstream, downstream), values.line(index))
            cut_off = values.connected[parent] & ~self.live[parent] & ~own & ~self.frozen
            if is_live and cut_off and not self.live[parent]:
                self._fed(parent, cut_off, own)

    def _fed(self, parent: int, cut_off: int, own: int) -> None:
        cut = self._cut_of(parent)
        if cut is not None and cut.kind in ("detach", "detach_", "data"):
            for upstream in self._named(cut_off):
                for downstream in self._named(own):
                    self.found.fed.setdefault((upstream, downstream), cut)

    def _cut_of(self, index: int) -> CutSite | None:
        if index not in self._cuts:
            cuts = Trace(self.values, index).cuts_of(-1)
            self._cuts[index] = cuts[0] if cuts else None
        return self._cuts[index]

    def _terms(self, loss: int) -> None:
        """Follow the sum that the loss is, down to its terms."""
        values, stack, seen = self.values, [loss], {loss}
        while stack:
            index = stack.pop()
            parents, op = self._parents(index), values.op(index)
            if not self.live[index] or not (op in _SUMS or (op in _SCALES and len(parents) == 1)):
                continue
            for parent in dict.fromkeys(parents):
                if self.live[parent] and parent in self.called:
                    self.found.terms[self.called[parent]] = parent
                elif self.live[parent]:
                    stack += [parent] if parent not in seen else []
                    seen.add(parent)
                elif op in _SUMS and (hangs_on := values.connected[parent] & ~self.frozen):
                    cut = self._cut_of(parent)
                    if cut is not None and not values.cuts[parent]:
                        self.found.constants.append((cut, tuple(self._named(hangs_on))))

    def _stops(self, loss: int, order: list[int]) -> None:
        values, found = self.values, self.found
        missing = self.hangs[loss] & ~self.flows[loss]
        exits = {
            p for i in order if i >= values.roots and not values.modes[i] for p in self._parents(i) if values.modes[p]
        }
        for index in reversed(order):
            if not missing or index < values.roots:
                break
            if values.cuts[index] or (values.modes[index] and index in exits):
                stopped = missing & self.hangs[index]
                found.stopped.update(dict.fromkeys(_places(stopped), values.site(index)))
                missing &= ~stopped

    def _named(self, bits: int) -> list[str]:
        found = []
        while bits:
            bit = bits & -bits
            bits ^= bit
            if bit in self.names:
                found.append(self.names[bit])
        return found


def _places(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1
