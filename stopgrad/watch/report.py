"""What a run tells: the matrix, what each optimiser steps and on whose gradients, and the findings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.values import place
from stopgrad.watch.findings import Finding, findings
from stopgrad.watch.watch import Watch


@dataclass
class Report:
    """Attributes:
    matrix: of the cycles that were measured, or None.
    optimizers: one line each: what it steps, and which losses feed it.
    """

    matrix: FlowMatrix | None
    optimizers: list[str]
    losses: list[str]
    cycles: int
    findings: list[Finding]

    @classmethod
    def of(cls, watch: Watch) -> Report:
        ledger = watch.ledger
        lines = []
        for key, known in ledger.optimizers.items():
            held = Counter(watch.home.get(p, "others") for p in known.holds)
            fed: dict[str, Counter[str]] = {}
            for (loss, _, owner, kind), count in ledger.uses.items():
                if owner == key:
                    fed.setdefault(kind, Counter())[loss] += count
            told = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in fed.items())
            name, at = known.name or known.kind, place(known.file, known.line)
            lines.append(f"{name} ({known.kind}, {at}): {ledger.steps[key]} steps of {', '.join(held)}; {told}")
        losses = [f"{name} ({place(file, line)}) x{count}" for name, (file, line, count) in ledger.losses.items()]
        return cls(watch.matrix, lines, losses, watch.cycle + 1, findings(watch))

    def __str__(self) -> str:
        if not self.losses:
            return "nothing to report: no backward ran"
        return "\n".join(["stopgrad run", str(self.matrix or "no matrix"), "", *self.losses, *self.optimizers, "", *map(str, self.findings)])
