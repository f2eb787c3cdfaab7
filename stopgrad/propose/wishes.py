"""What is asked for: cells that are to close, and cells that are to open, by the names that a run gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stopgrad.cuts.strategies import nearest
from stopgrad.flow.contract import FlowContract
from stopgrad.flow.flows import Cell
from stopgrad.flow.parts import FROZEN, TRAINED
from stopgrad.flow.values import place
from stopgrad.propose.edits import Source
from stopgrad.propose.places import assigned

_VALUE = re.compile(r"(?P<variable>[\w.]+)@(?P<file>[^@]+):(?P<line>\d+)")


@dataclass
class Wishes:
    """What was asked, word by word.

    Attributes:
        apart, reach: loss and part as they were written.
        contract: the rows of a file.
    """

    apart: list[Cell] = field(default_factory=list)
    reach: list[Cell] = field(default_factory=list)
    contract: FlowContract | None = None

    @classmethod
    def of(cls, apart: Iterable[str], reach: Iterable[str], file: str | None) -> Wishes:
        """Those of the command line.

        Raises:
            ValueError: one is not LOSS:PART; two contradict each other; there is none.
        """
        contract = None
        if file is not None:
            if not Path(file).is_file():
                raise ValueError(f"--contract {file}: no such file")
            contract = FlowContract.from_yaml(Path(file))
        wishes = cls([_cell("--not", text) for text in apart], [_cell("--reach", text) for text in reach], contract)
        both = set(wishes.apart) & set(wishes.reach)
        if both:
            loss, part = min(both)
            raise ValueError(f"--not {loss}:{part} and --reach {loss}:{part} contradict each other")
        if not (wishes.apart or wishes.reach or contract):
            raise ValueError("nothing is asked for: give --not LOSS:PART, --reach LOSS:PART or --contract FILE")
        return wishes

    @property
    def losses(self) -> list[str]:
        """The losses that are named without wildcards."""
        rows = [] if self.contract is None else [loss for loss in self.contract if "*" not in loss]
        return list(dict.fromkeys([*(loss for loss, _ in [*self.apart, *self.reach]), *rows]))

    @property
    def parts(self) -> list[str]:
        rows = [] if self.contract is None else [part for row in self.contract.values() for part in row]
        return list(dict.fromkeys([*(part for _, part in [*self.apart, *self.reach]), *rows]))

    def cells(self, losses: Sequence[str], parts: Sequence[str]) -> tuple[list[Cell], list[Cell]]:
        """The cells that are to be closed and those that are to be open, by the names that exist.

        Raises:
            ValueError: a name that does not exist; what a contract and the command line say contradicts itself.
        """
        apart = [(loss, part) for wish in self.apart for loss, part in _named("--not", wish, losses, parts)]
        reach = [(loss, part) for wish in self.reach for loss, part in _named("--reach", wish, losses, parts)]
        if self.contract is not None:
            wanted = self.contract.wanted(losses, parts, unions=_unions(parts))
            for (loss, name), state in wanted.items():
                each = [(loss, part) for part in _unions(parts).get(name, (name,))]
                (apart if state == "blocked" else reach).extend(each)
        both = set(apart) & set(reach)
        if both:
            loss, part = min(both)
            raise ValueError(f"{loss}:{part} is to be reached, and not to be reached")
        return list(dict.fromkeys(apart)), list(dict.fromkeys(reach))


def _cell(flag: str, text: str) -> Cell:
    value = re.fullmatch(rf"(?P<loss>.+?):{_VALUE.pattern}", text)
    loss, _, part = (value["loss"], "", text[len(value["loss"]) + 1 :]) if value else text.rpartition(":")
    if not (loss and part):
        raise ValueError(f"{flag} {text}: write LOSS:PART, such as d_loss:generator or loss:target@train.py:40")
    return loss.strip(), part.strip()


def _unions(parts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names that stand for several parts: of both halves of a module, and of what lies below it."""
    found: dict[str, list[str]] = {}
    for part in parts:
        whole = part.removesuffix(FROZEN).removesuffix(TRAINED)
        steps = whole.split(".") if "@" not in part and not part.startswith("stop.") else [whole]
        for name in dict.fromkeys([*(".".join(steps[:i]) for i in range(1, len(steps) + 1)), whole]):
            found.setdefault(name, []).append(part)
    known = set(parts)
    return {name: tuple(each) for name, each in found.items() if name not in known}


def _named(flag: str, wish: Cell, losses: Sequence[str], parts: Sequence[str]) -> list[Cell]:
    loss, part = wish
    if loss not in losses:
        raise ValueError(f"{flag} {loss}:{part}: no loss {loss!r}; there is {', '.join(losses)}{nearest(loss, losses)}")
    unions = _unions(parts)
    if part not in parts and part not in unions:
        known = [*parts, *unions]
        raise ValueError(f"{flag} {loss}:{part}: no part {part!r}; there is {', '.join(parts)}{nearest(part, known)}")
    return [(loss, each) for each in unions.get(part, (part,))]


@dataclass(frozen=True)
class ValuePart:
    """A variable that is a part: where it gets its value."""

    name: str
    file: str
    line: int
    variable: str


def values_among(parts: Iterable[str], script: str) -> list[ValuePart]:
    """The parts that are values, as ``target@train.py:40``.

    Raises:
        ValueError: no such file; nothing of this name gets its value in that line.
    """
    found = []
    for name in parts:
        match = _VALUE.fullmatch(name)
        if match is None:
            continue
        near = [match["file"], str(Path(script).parent / match["file"])]
        file = next((str(Path(f).resolve()) for f in near if Path(f).is_file()), None)
        if file is None:
            raise ValueError(f"{name}: no such file as {match['file']}")
        line, variable = int(match["line"]), match["variable"]
        each = list(assigned(Source(file).tree))
        at = [by for given, by in each if given == variable and by.lineno <= line <= _head(by)]
        if not at:
            same = sorted({by.lineno for given, by in each if given == variable})
            here = sorted({given for given, by in each if by.lineno <= line <= _head(by)})
            hint = (
                f"it does in {', '.join(map(str, same))}"
                if same
                else f"that line gives {', '.join(here) or 'none'} one"
            )
            raise ValueError(f"{name}: {variable} gets no value in {place(file, line)}; {hint}")
        found.append(ValuePart(name, file, at[0].lineno, variable))
    return found


def _head(node: object) -> int:
    """The last line of a statement; of a loop or a ``with``, the first."""
    is_block = hasattr(node, "body")
    return getattr(node, "lineno", 0) if is_block else getattr(node, "end_lineno", 0)
