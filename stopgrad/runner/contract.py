"""A contract that a run breaks: expected where the config flips a boundary of it, and else told in one line."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lightning.pytorch import LightningModule, Trainer

from stopgrad.cuts.boundary import Stops
from stopgrad.flow.contract import Violation
from stopgrad.flow.steps import Finding
from stopgrad.lightning import FlowAudit
from stopgrad.runner.terminal import say

VERBS = {
    "leak": "reaches {}",
    "starved": "does not reach {}",
    "opaque": "may reach {}: it cannot be told",
    "cut": "is cut on its way to {}",
    "missing": "did not come{}",
}


class ContractAudit(FlowAudit):
    """The :class:`FlowAudit` of a run whose config may flip boundaries on purpose.

    What that breaks is a result: it is recorded, and told when the run ends. What breaks although nothing is flipped is
    a mistake, and told at once.

    Args:
        every_n_steps, on_violation: as of :class:`FlowAudit`; ``raise`` raises, flipped or not.

    Attributes:
        flipped: the boundaries of the contract that the module's :class:`~stopgrad.Stops` have flipped.
    """

    def __init__(self, every_n_steps: int | None = None, on_violation: str = "warn") -> None:
        super().__init__(every_n_steps, on_violation, watch=False)
        self.flipped: list[str] = []
        self._told: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        named = {part for row in self._contract(pl_module).values() for part in row}
        stops = [value for value in vars(pl_module).values() if isinstance(value, Stops)]
        found = [name for stop in stops for name in stop.flipped]
        self.flipped = [name for name in found if any(fnmatchcase(f"stop.{name}", part) for part in named)]
        self._speaks = trainer.is_global_zero

    def tell(self, found: Sequence[Violation]) -> None:
        line = in_a_line(found)
        if not self.flipped and self._speaks and line not in self._told:
            self._told.add(line)
            say(f"contract broken, though no boundary is flipped: {line}")

    def tell_finding(self, finding: Finding) -> None:
        if not self.flipped and self._speaks:
            say(str(finding))


def in_a_line(violations: Sequence[Violation]) -> str:
    """``d_loss reaches generator and stop.fakes``."""
    parts: dict[tuple[str, str], list[str]] = {}
    for violation in violations:
        parts.setdefault((violation.loss, violation.kind), []).append(violation.part)
    return "; ".join(f"{loss} {VERBS[kind].format(' and '.join(found))}" for (loss, kind), found in parts.items())
