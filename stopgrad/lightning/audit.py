"""What the callbacks share: which batches are audited, the parts of a module, and one verdict over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule

from stopgrad.audits.ranks import gathered
from stopgrad.cuts.boundary import Boundary, Stops
from stopgrad.flow.parts import Modules

_V = TypeVar("_V")


def groups_of(module: LightningModule) -> Modules:
    """What the module's ``parameter_groups()`` returns, or else the module: its named children are the groups."""
    declared = getattr(module, "parameter_groups", None)
    return declared() if callable(declared) else module  # pyright: ignore[reportReturnType]


def boundaries_of(module: LightningModule) -> list[str]:
    """Names of the boundaries among the module's attributes, such as those of its ``stop``."""
    names = []
    for value in vars(module).values():
        names += [value.name] if isinstance(value, Boundary) else value.boundaries if isinstance(value, Stops) else []
    return list(dict.fromkeys(names))


def over_ranks(found: Sequence[_V]) -> list[_V]:
    """The findings of all ranks, each once: all ranks must raise, or none."""
    return list(dict.fromkeys(v for rank in gathered(list(found)) for v in rank))


class Audit(Callback):
    """Which batches are audited, and what happens on a violation."""

    def __init__(self, every_n_steps: int | None, on_violation: str) -> None:
        if on_violation not in ("raise", "warn", "record"):
            raise ValueError(f"on_violation={on_violation}: choose one of raise, warn, record")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps}: choose a number from 1, or None for the first batch alone"
            )
        self.every_n_steps = every_n_steps
        self.on_violation = on_violation
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]
