"""What a watch has seen, and the questions that the rules ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

from stopgrad.audits.retention import Kept
from stopgrad.flow.lookup import has_parameters, parameters_of
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.watch.calls import Calls
from stopgrad.watch.evidence import Evidence
from stopgrad.watch.graphs import Graphs, Line
from stopgrad.watch.ledger import Ledger
from stopgrad.watch.merge import shown
from stopgrad.watch.moves import Moves
from stopgrad.watch.options import Options
from stopgrad.watch.parts import Parts
from stopgrad.watch.ranks import Ranks


class Seen:
    """What a watch has seen, and the questions that the rules ask of it.

    Attributes:
        options: what was asked for beside the cycles.
        home: the part of each parameter, by its number in the ledger.
        evidence: by loss; its parameters by their numbers in the ledger.
        standing: (loss, variable) -> the line, and the parameters to which a value that is named as if it stood still
            carries a gradient.
        clips: (line, parts) of each clipping of a gradient's norm.
        changed: how and where a value that a backward needed was written to behind autograd's back.
        terms: the loss of each term that has a row of its own.
        kept: what held graphs at the first looks, oldest first.
        cycle: the one that runs, from 0.
        books: so many cycles are written down in full.
        ended: the script ended by itself.
        notes: what was not seen.
    """

    def __init__(self, books: int, options: Options) -> None:
        self.options = options
        self.ledger, self.parts, self.calls = Ledger(), Parts(), Calls()
        self.moves, self.graphs, self.ranks = Moves(), Graphs(), Ranks()
        self.home: dict[int, str] = {}
        self.evidence: dict[str, Evidence] = {}
        self.standing: dict[tuple[str, str], tuple[Line, set[int]]] = {}
        self.clips: dict[tuple[Line, tuple[str, ...]], None] = {}
        self.changed: dict[tuple[str, Line], None] = {}
        self.terms: dict[str, str] = {}
        self.kept: list[list[Kept]] = []
        self.cycle, self.books = 0, books
        self.ended = False
        self.notes: list[str] = []
        self._matrix: FlowMatrix | None = None
        self._used: set[int] = set()

    def note(self, text: str) -> None:
        """Something that was not seen."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def matrix(self) -> FlowMatrix | None:
        """Of the cycles that were measured, and of the books for losses that never were; None where no loss was."""
        loose = {key: p for key, p in self.ledger.parameters().items() if not isinstance(p, nn.Parameter)}
        held = {p for known in self.ledger.optimizers.values() for p in known.holds}
        inputs = {self.home.get(key) for key, p in loose.items() if key not in held and not self.moves.moved(p)}
        found = self._booked(self._matrix or FlowMatrix([], {}, []))
        parts = [part for part in found.parts if part not in inputs and part in self.home.values()]
        matrix = shown(found, [part for part in parts if re.search(self.options.parts, part)])
        return matrix if matrix.losses and matrix.parts else None

    def _booked(self, measured: FlowMatrix) -> FlowMatrix:
        """With a row for each loss that was not measured: the parts into which its backward has written."""
        cells, parts = measured.told(), dict.fromkeys(measured.parts)
        missing = [loss for loss in self.ledger.losses if loss not in measured.losses]
        for loss in missing:
            wrote = dict.fromkeys(self.home.get(key, "others") for name, key in self.ledger.wrote if name == loss)
            parts |= wrote
            unseen = Cell("opaque", note="not measured")
            cells |= {(loss, part): Cell("open") if part in wrote else unseen for part in parts}
        return FlowMatrix(list(parts), cells, [*measured.losses, *missing], measured.facts)

    def name(self) -> None:
        """Say which part each parameter belongs to, while the modules are alive."""
        alive = self.ledger.parameters()
        numbers = {id(p): key for key, p in alive.items()}
        for name, tensors in self.parts.of(alive.values(), self.ledger.groups(), self.options.depth).items():
            keys = [numbers[id(p)] for p in tensors]
            known = name in self.parts.loose  # a network may die before its parameters do
            self.home.update((key, name) for key in keys if not known or key not in self.home)

    def key(self, parameter: Tensor) -> int:
        """The number of a parameter in the ledger; -1 where it is not there."""
        key = self.ledger.key(parameter)
        return -1 if key is None else key

    def parts_of(self, parameters: Iterable[int]) -> str:
        """The parts of some parameters, in words."""
        return ", ".join(dict.fromkeys(self.home.get(key, "others") for key in parameters))

    def to_train(self) -> dict[int, Tensor]:
        """What an optimiser that steps holds; in a script that has no optimiser, everything."""
        held = {p for known in self.ledger.optimizers.values() if known.steps for p in known.holds}
        return {key: p for key, p in self.ledger.parameters().items() if key in held or not self.ledger.optimizers}

    def is_stepped(self, parameter: Tensor) -> bool:
        """Whether some optimiser stepped it on some loss's gradient."""
        return self.ledger.key(parameter) in self._used

    def candidates(self) -> dict[str, nn.Module]:
        """The named modules, and those inside of them with parameters, by their full names."""
        found: dict[str, nn.Module] = {}
        for name, root in self.parts.names().items():
            for path, module in root.named_modules():
                if has_parameters(module):
                    found[f"{name}.{path}" if path else name] = module
        return found

    def like(self, module: nn.Module) -> list[str]:
        """The names of other modules of the same class and shapes, that neither hold this one nor lie in it."""
        shapes, inner = [p.shape for p in parameters_of(module)], set(module.modules())
        return [
            name
            for name, other in self.candidates().items()
            if type(other) is type(module)
            and other not in inner
            and module not in set(other.modules())
            and [p.shape for p in parameters_of(other)] == shapes
        ]

    def modules(self) -> list[nn.Module]:
        """All modules of the script, each once."""
        return list({id(m): m for root in self.parts.names().values() for m in root.modules()}.values())

    def name_of(self, module: nn.Module) -> str:
        """A module's full name, or its class."""
        return next((name for name, m in self.candidates().items() if m is module), type(module).__name__)
