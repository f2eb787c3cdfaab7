"""Findings: what of the books is not what the code says, in the names of the museum's exhibits.

Three grades. An **error** is a training that is not what the code says, a **warning** is waste or a trap, a **note** is
healthy and worth knowing. Each rule is a function of the watch; what it cannot know it does not claim.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stopgrad.flow.values import place

if TYPE_CHECKING:
    from stopgrad.watch.watch import Watch

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One rule and one place.

    Attributes:
        name: of the museum's exhibit that shows it.
        severity: ``error``, ``warning`` or ``note``.
        message: the evidence, with its numbers, in one line.
        fix: what to write instead.
        file, line: where to look; "" and 0 where no line is known.
    """

    name: str
    severity: str
    message: str
    fix: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        at = f"{place(self.file, self.line)}: " if self.file else ""
        return f"{self.severity}: {at}{self.message}\n    {self.fix}  [{self.name}]"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Rule = Callable[["Watch"], Iterator[Finding]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def findings(watch: Watch, silenced: Iterable[str] = ()) -> list[Finding]:
    """All findings, errors first; none where no optimiser stepped."""
    if not watch.ledger.steps:
        return []
    found = {finding: None for each in RULES for finding in each(watch) if finding.name not in set(silenced)}
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.file, f.line, f.name))


def _parts(watch: Watch, keys: Iterable[int]) -> str:
    return ", ".join(dict.fromkeys(watch.home.get(key, "others") for key in keys))


@rule
def leaks(watch: Watch) -> Iterator[Finding]:
    """A gradient that was left by a loss of another optimiser, and stepped."""
    found: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for (loss, parameter, optimizer, kind), count in watch.ledger.uses.items():
        if kind == "leak":
            found[loss, optimizer][parameter] += count
    for (loss, optimizer), parameters in found.items():
        known = watch.ledger.optimizers[optimizer]
        file, line, _ = watch.ledger.losses[loss]
        times, steps = max(parameters.values()), watch.ledger.steps[optimizer]
        part = _parts(watch, parameters)
        yield Finding(
            "late_zero_grad",
            "error",
            f"{known.name} stepped {part} on {loss}'s gradient as well, in {times} of {steps} steps",
            f"cut what crosses from {part} into {loss} (.detach()), or clear {known.name} before its own backward",
            file,
            line,
        )


@rule
def never_cleared(watch: Watch) -> Iterator[Finding]:
    """A gradient that was stepped, not cleared, and stepped again."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for (_, parameter, optimizer, kind), count in watch.ledger.uses.items():
        if kind == "again":
            found[optimizer][parameter] += count
    for optimizer, parameters in found.items():
        known = watch.ledger.optimizers[optimizer]
        steps = watch.ledger.steps[optimizer]
        yield Finding(
            "never_zeroed",
            "error",
            f"{known.name} stepped {_parts(watch, parameters)} on gradients that an earlier step had used, "
            f"in {min(max(parameters.values()), steps - 1)} of {steps} steps",
            f"call {known.name}.zero_grad() before each backward, or after each step",
            *watch.ledger.step_lines[optimizer],
        )


@rule
def empty_steps(watch: Watch) -> Iterator[Finding]:
    """Steps with no gradient at all."""
    for optimizer, count in watch.ledger.empty_steps.items():
        known, steps = watch.ledger.optimizers[optimizer], watch.ledger.steps[optimizer]
        if count < steps:
            continue
        cleared = {loss for (loss, parameter) in watch.ledger.wasted if parameter in set(known.holds)}
        why = (
            f"{', '.join(sorted(cleared))} wrote gradients, which were cleared before"
            if cleared
            else "no loss wrote one"
        )
        yield Finding(
            "empty_step",
            "error",
            f"{known.name} found no gradient in any of its {steps} steps: {why}",
            "call zero_grad, backward and step in this order"
            if cleared
            else "give the loss a path to these parameters",
            *watch.ledger.step_lines[optimizer],
        )


@rule
def listed_twice(watch: Watch) -> Iterator[Finding]:
    """A parameter that one optimiser holds more than once: it is stepped as often."""
    for key, known in watch.ledger.optimizers.items():
        twice = [p for p, count in Counter(known.holds).items() if count > 1]
        if twice and watch.ledger.steps[key]:
            yield Finding(
                "listed_twice",
                "error",
                f"{known.name} holds {len(twice)} parameters of {_parts(watch, twice)} more than once",
                "give it each parameter once: list(dict.fromkeys(parameters))",
                known.file,
                known.line,
            )
