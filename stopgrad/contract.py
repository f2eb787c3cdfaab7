"""A flow contract: which loss must reach, and must not reach, which part of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stopgrad.strategy import nearest

STATES = ("open", "blocked")


class FlowContract(Mapping[str, Mapping[str, str]]):
    """``{loss: {part: "open" | "blocked"}}``: a part is a parameter group, or a boundary written ``stop.NAME``.

    ``open`` asks for a gradient; ``blocked`` is met when none arrives, for whatever reason.

    Raises:
        ValueError: a state other than ``open`` and ``blocked``.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        for loss, row in rows.items():
            for part, state in row.items():
                if state not in STATES:
                    hint = nearest(state, STATES)
                    raise ValueError(f"contract {loss} -> {part}: {state!r} is neither 'open' nor 'blocked'{hint}")
        self._rows = {loss: dict(row) for loss, row in rows.items()}

    def __getitem__(self, loss: str) -> Mapping[str, str]:
        return self._rows[loss]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"FlowContract({self._rows!r})"
