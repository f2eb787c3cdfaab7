"""Names for losses that nobody named: of several, each is told by its lines."""

from __future__ import annotations

from collections.abc import Callable

from stopgrad.flow.values import place

Line = tuple[str, int]


class LossNames:
    """The name that all losses have, and of several the lines that tell each from the others."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[tuple[Line, ...], str] = {}

    def of(self, *lines: Line, rename: Callable[[str, str], None]) -> str:
        """The name of a loss that is computed, and goes backward, at these lines.

        Args:
            rename: is told of a loss that has another name from now on: the old one and the new.
        """
        if lines in self._lines or not self._lines:
            return self._lines.setdefault(lines, self._name)
        self._lines[lines] = self._name
        for key, old in [*self._lines.items()]:
            alone = [line for i, line in enumerate(key) if [other[i] for other in self._lines].count(line) == 1]
            new = self._lines[key] = f"{self._name} ({', '.join(place(*line) for line in alone[-1:] or key)})"
            if key != lines:
                rename(old, new)
        return self._lines[lines]
