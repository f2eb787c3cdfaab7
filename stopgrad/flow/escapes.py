"""Where values left PyTorch as Python numbers or arrays: ways by which a loss may depend on a part unseen."""

from __future__ import annotations

from collections.abc import Sequence

from stopgrad.flow.values import CutSite, Trace, Values


class Escapes:
    """The escapes of an audit that are not the logging of a reported loss. Those that say the same are kept once.

    Attributes:
        bits: the bits of the parts whose value left.
    """

    def __init__(self, values: Values | None = None) -> None:
        self.bits = 0
        self._values = values or Values()
        self._read = 0
        self._losses: set[int] = set()
        self._found: dict[tuple, list[int]] = {}  # what tells escapes apart -> how many there are, and the first
        self._of_value: dict[int, list[tuple]] = {}  # the value that left -> its escapes

    def update(self, escapes: Sequence[int], loss: int) -> None:
        """Read the escapes that are new; ``loss`` is the value of a loss that is reported."""
        self._losses.add(loss)
        for key in self._of_value.pop(loss, ()):
            self._found[key][0] -= 1
            if not self._found[key][0]:
                del self._found[key]
        values = self._values
        for index in escapes[self._read :]:
            parents = values.parents[values.first[index] : values.first[index + 1]]
            if self._losses.isdisjoint(parents):
                key = (values.behind(index), *values.key(index))
                self._found.setdefault(key, [0, index])[0] += 1
                self._of_value.setdefault(parents[0] if parents else -1, []).append(key)
        self._read = len(escapes)
        self.bits = 0
        for mask, *_ in self._found:
            self.bits |= mask

    def of(self, bit: int) -> tuple[CutSite, ...]:
        """The lines where a part's value left, if no number that left is known to have come back."""
        sites = []
        for (mask, *_), (_, index) in self._found.items():
            if mask & bit:
                sites += Trace(self._values, index).escapes_of(bit)
        return tuple(dict.fromkeys(sites))
