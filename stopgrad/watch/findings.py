"""Findings: what of a run is not what the code says, in the names of the museum's exhibits.

Three grades. An **error** is a training that is not what the code says, a **warning** is waste or a trap, a **note** is
healthy and worth knowing. Each rule is a function of the watch; what it cannot know it does not claim.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stopgrad.flow.frames import is_library
from stopgrad.flow.values import place
from stopgrad.museum.explain import find

if TYPE_CHECKING:
    from stopgrad.watch.seen import Seen

SEVERITIES = ("error", "warning", "note")
SHOWN = 3  # names in a message


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


Rule = Callable[["Seen"], Iterator[Finding]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def findings(watch: Seen) -> list[Finding]:
    """All findings, errors first."""
    from stopgrad.watch import rules  # they register themselves

    assert rules.__all__
    found: dict[Finding, None] = {}
    for each in RULES:
        try:
            found.update(dict.fromkeys(each(watch)))
        except Exception as error:  # of whatever kind: the others are told all the same
            watch.note(f"the rule {each.__name__} failed: {type(error).__name__}: {error}")
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.file, f.line, f.name))


def raised(error: BaseException | None) -> list[Finding]:
    """What the museum knows of the exception that ended a script."""
    if not isinstance(error, Exception):
        return []
    known = find(f"{type(error).__name__}: {error}")[:1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    at = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
    return [Finding(e.name, "error", e.title, f"python -m stopgrad museum {e.name}", *at) for e in known]


def shown(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
