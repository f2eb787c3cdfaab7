"""A flow contract: which loss must reach, and must not reach, which part of a model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stopgrad.cuts.strategies import nearest
from stopgrad.flow.advice import leak, starved
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.proposal import proposal
from stopgrad.flow.values import CutSite

WANTED = ("open", "attached", "blocked")
_MOST = 12  # violations that an error tells in full


@dataclass(frozen=True)
class Violation:
    """One broken promise; ``text`` tells it. ``kind`` is ``leak``, ``starved``, ``opaque``, ``cut`` or ``missing``."""

    kind: str
    loss: str
    part: str
    text: str


class FlowViolation(AssertionError):
    """A gradient went where the contract says it must not, or did not go where it must."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        told = [v.text for v in violations[:_MOST]]
        if len(violations) > _MOST:
            kinds = Counter(v.kind for v in violations[_MOST:])
            told.append(f"and {', '.join(f'{n:,} more: {kind}' for kind, n in kinds.items())}; .violations has each")
        super().__init__("\n".join(told))


class GradientLeak(FlowViolation):
    """A loss reaches a part that its contract calls blocked (or a cut is not allowed, or nothing can be told)."""


class GradientStarved(FlowViolation):
    """A loss does not reach a part that its contract calls open."""


class FlowContract(Mapping[str, Mapping[str, str]]):
    """``{loss: {part: "open" | "attached" | "blocked"}}``: a part is a parameter group, or a boundary ``stop.NAME``.

    ``open`` asks for a gradient that is not zero; ``attached`` for one that may be, as at LoRA's A in the first step,
    while B is 0; ``blocked`` is met when none arrives, for whatever reason. Names of losses and parts may hold
    wildcards (``"*_loss"``, ``"target*"``); an exact name goes before a wildcard. A part is also the dotted name of a
    submodule or parameter, if the audit was told of the contract before (as :func:`assert_flow`, ``FlowAudit`` and
    ``audit(contract=)`` are).

    Args:
        rows: the wanted state of each part, by loss. Parts that are not named may be in any state.
        frozen: parts that no loss may reach.
        strict: also fail where the audit cannot tell (``opaque``), and at every cut on a loss's value path that is
            neither a boundary nor allowed by :meth:`allow_cut`.

    Raises:
        ValueError: another state, or a part that is frozen and must be reached.
    """

    def __init__(
        self, rows: Mapping[str, Mapping[str, str]], *, frozen: Sequence[str] = (), strict: bool = False
    ) -> None:
        __tracebackhide__ = True  # pytest shows the caller's line
        for loss, row in rows.items():
            if not isinstance(row, Mapping):
                raise ValueError(f"contract {loss}: {row!r} is no mapping of parts to 'open', 'attached' or 'blocked'")
            for part, state in row.items():
                if state not in WANTED:
                    hint = nearest(state, WANTED)
                    raise ValueError(f"contract {loss} -> {part}: {state!r} is none of {', '.join(WANTED)}{hint}")
                if state != "blocked" and part in frozen:
                    raise ValueError(f"contract {loss} -> {part}: {state!r}, but {part} is frozen")
        self._rows = {loss: dict(row) for loss, row in rows.items()}
        self.frozen = tuple(frozen)
        self.strict = strict
        self.allowed: tuple[str, ...] = ()

    def __getitem__(self, loss: str) -> Mapping[str, str]:
        return self._rows[loss]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"FlowContract({self._rows!r})"

    def allow_cut(self, *places: str) -> FlowContract:
        """The same contract, with cuts in these files (``"models/ema.py"``) or modules (``"torchrl"``) intended."""
        allowed = FlowContract(self._rows, frozen=self.frozen, strict=self.strict)
        allowed.allowed = self.allowed + places
        return allowed

    @classmethod
    def of(cls, given: Any) -> FlowContract:
        """A contract, of itself or of its rows.

        Raises:
            TypeError: it is neither.
        """
        __tracebackhide__ = True
        if isinstance(given, FlowContract):
            return given
        if not isinstance(given, Mapping):
            rows = f"{{loss: {{part: {' or '.join(map(repr, WANTED))}}}}}"
            raise TypeError(f"contract={given!r}: pass a FlowContract, or {rows}")
        return cls(given)

    @classmethod
    def from_yaml(cls, source: str | Path) -> FlowContract:
        """Read a contract from a YAML file, or from YAML text (a string with a line break or a colon in it).

        The text is the mapping of rows itself, or has the keys ``losses``, ``frozen``, ``allow_cut`` and ``strict``.

        Raises:
            ImportError: PyYAML is not installed.
            ValueError: an unknown key or a wrong state.
        """
        try:
            import yaml
        except ImportError:
            raise ImportError("FlowContract.from_yaml needs PyYAML: pip install pyyaml") from None
        is_text = isinstance(source, str) and ("\n" in source or ": " in source)
        data = yaml.safe_load(str(source) if is_text else Path(source).read_text(encoding="utf-8"))
        if not isinstance(data, Mapping):
            raise ValueError(f"contract: expected a mapping of losses, got {type(data).__name__}")
        if "losses" not in data:
            return cls(data)
        keys = ("losses", "frozen", "allow_cut", "strict")
        for key in data:
            if key not in keys:
                raise ValueError(f"contract: unknown key {key!r}; choose from {', '.join(keys)}{nearest(key, keys)}")
        contract = cls(data["losses"], frozen=data.get("frozen", ()), strict=bool(data.get("strict", False)))
        return contract.allow_cut(*data.get("allow_cut", ()))

    def wanted(
        self,
        losses: Sequence[str],
        parts: Sequence[str],
        *,
        partial: bool = False,
        unions: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[Any, str]:
        """``{(loss, part): state}`` for the losses and parts that exist, wildcards filled in.

        Args:
            unions: other names of parts.
            partial: losses that the contract names may be missing: they were not computed in this step.

        Raises:
            ValueError: the contract names a loss or a part that does not exist, or two wildcards disagree.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        found: dict[tuple[str, str], tuple[bool, str]] = {}
        rows = {**self._rows, **({"*": dict.fromkeys(self.frozen, "blocked")} if "*" not in self._rows else {})}
        if "*" in self._rows:
            rows["*"] = {**self._rows["*"], **dict.fromkeys(self.frozen, "blocked")}
        for loss_pattern, row in rows.items():
            matching = _match(loss_pattern, losses, "loss", optional=partial or loss_pattern == "*")
            for part_pattern, state in row.items():
                for part in _match(part_pattern, parts, "part", optional=False, others=unions or ()):
                    for loss in matching:
                        exact = loss == loss_pattern and part == part_pattern
                        known_exact, known = found.get((loss, part), (False, state))
                        if exact or known == state:
                            found[loss, part] = (exact or known_exact, state)
                        elif not known_exact:
                            raise ValueError(f"contract {loss} -> {part}: wildcards say both {known!r} and {state!r}")
        return {key: state for key, (_, state) in found.items()}

    def violations(self, matrix: FlowMatrix, *, partial: bool = False) -> list[Violation]:
        """Every way in which a matrix breaks this contract; see :meth:`wanted` for ``partial`` and the errors."""
        __tracebackhide__ = True  # pytest shows the caller's line
        found = []
        unions = matrix.facts.unions
        wanted = self.wanted(matrix.losses, matrix.parts, partial=partial, unions=unions)
        frozen = {p for name in self.frozen for p in _match(name, matrix.parts, "part", optional=True, others=unions)}
        open_parts: dict[str, list[str]] = {}
        for (loss, part), state in wanted.items():
            if state != "blocked":
                open_parts.setdefault(loss, []).append(part)
        for (loss, part), state in wanted.items():
            cell = matrix[loss, part]
            if cell.state == "opaque":
                text = f"{loss} -> {part}: cannot tell whether it is {state}: {cell.note}"
                found.append(Violation("opaque", loss, part, text))
            elif state == "blocked" and cell.state in ("open", "zero"):
                found.append(Violation("leak", loss, part, leak(matrix, loss, part, open_parts.get(loss, ()), frozen)))
            elif state != "blocked" and cell.state not in ("open", "zero" if state == "attached" else "open"):
                found.append(Violation("starved", loss, part, starved(matrix, loss, part, state)))
        found += self._unexpected_cuts(matrix) if self.strict else []
        leaks = [(v.loss, v.part) for v in found if v.kind == "leak"]
        keep = [cell for cell, told in matrix.told().items() if told.state == "open" and wanted.get(cell) != "blocked"]
        mends = proposal(matrix.facts.ways, leaks, keep) if leaks else ""
        return [*found[:-1], replace(found[-1], text=f"{found[-1].text}\n{mends}")] if mends else found

    def check(self, matrix: FlowMatrix, *, partial: bool = False) -> None:
        """Raise :class:`GradientLeak` or :class:`GradientStarved` for a matrix that breaks this contract.

        The error names every violation; a leak goes before a starved part. ``opaque`` cells warn, unless strict.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        raise_for(self.violations(matrix, partial=partial), strict=self.strict)

    def _unexpected_cuts(self, matrix: FlowMatrix) -> list[Violation]:
        cuts = {cut: key for key, cell in matrix.items() if cell.state != "independent" for cut in cell.cuts}
        return [
            Violation(
                "cut", loss, part, f"{loss} -> {part}: unexpected {cut}; use a Boundary, or allow_cut({cut.file!r})"
            )
            for cut, (loss, part) in cuts.items()
            if cut.boundary is None and cut.kind != "requires_grad" and not self._allows(cut)
        ]

    def _allows(self, cut: CutSite) -> bool:
        path = Path(cut.file).as_posix()
        return any(path.endswith(f"/{p.lstrip('/')}") or f"/{p.replace('.', '/')}/" in path for p in self.allowed)


def raise_for(violations: Sequence[Violation], *, strict: bool = False) -> None:
    """Raise the error that fits the violations, if any counts; warn of what could not be told."""
    __tracebackhide__ = True
    if not strict:
        for violation in violations:
            if violation.kind == "opaque":
                warnings.warn(violation.text, stacklevel=3)
        violations = [v for v in violations if v.kind != "opaque"]
    if any(v.kind not in ("starved", "missing") for v in violations):
        raise GradientLeak(violations)
    if violations:
        raise GradientStarved(violations)


def named_parts(contract: FlowContract | Mapping[str, Mapping[str, str]] | None) -> list[str]:
    """The parts that a contract names."""
    __tracebackhide__ = True
    if contract is None:
        return []
    rows = FlowContract.of(contract)
    return list(dict.fromkeys([*(part for row in rows.values() for part in row), *rows.frozen]))


def _match(pattern: str, names: Sequence[str], kind: str, *, optional: bool, others: Collection[str] = ()) -> list[str]:
    """The names that a pattern stands for; else those among ``others``, but for what lies below another one."""
    __tracebackhide__ = True
    if pattern in names or pattern in others:
        return [pattern]
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if not matching:
        matching = [name for name in others if fnmatchcase(name, pattern)]
        matching = [name for name in matching if not any(name.startswith(f"{above}.") for above in matching)]
    if not matching and not optional:
        raise ValueError(
            f"the contract names {kind} {pattern!r}; there is {', '.join(names) or 'none'}{nearest(pattern, names)}"
        )
    return matching
