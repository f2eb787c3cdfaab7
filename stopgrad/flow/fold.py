"""A flow matrix in so many words that they fit a screen: what is alike is told once, with its count."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stopgrad.flow.matrix import Cell, FlowMatrix

LINES, WIDTH = 24, 160  # a table, or a list of reasons, of more lines is folded; and a table that is wider
_NAMES = 4  # of parts in the same state that a line names

Key = tuple[str, str]


def matrix_text(matrix: FlowMatrix, broken: Collection[Key] = ()) -> str:
    """The matrix as a table and the reasons below it; folded where that is longer or wider than a screen.

    Args:
        broken: losses and parts that must not be folded away.
    """
    table = _table([[name] for name in matrix.losses], [[name] for name in matrix.parts], matrix)
    if table is None:
        losses, parts = {loss for loss, _ in broken}, {part for _, part in broken}
        folded = _table(_runs(matrix, losses, rows=True), _runs(matrix, parts, rows=False), matrix)
        table = [_count(matrix), *(_rows(matrix, losses) if folded is None else folded)]
        told = [(loss, part) for loss, part in broken if (loss, part) in matrix]
        table += [f"  {x} -> {y}: {matrix[x, y]} breaks the contract" for x, y in told[:LINES]]
        table += [f"  ... {len(told) - LINES:,} more break the contract"] if len(told) > LINES else []
    above = common(matrix.parts)
    lines = [f"the parts are those of {above[:-1]}"] if above else []
    return "\n".join([*table, *(f"  {line}" for line in [*lines, *reasons(matrix)])])


def common(parts: Sequence[str]) -> str:
    """The dotted beginning that all parts but boundaries share, with its last dot; "" if there is none, or one part."""
    paths = [part.split(".")[:-1] for part in parts if not part.startswith("stop.")]
    if len(paths) < 2:
        return ""
    shared = takewhile(lambda steps: len({*steps}) == 1, zip(*paths))  # noqa: B905
    return "".join(f"{steps[0]}." for steps in shared)


def span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"


def _count(matrix: FlowMatrix) -> str:
    counts = matrix.counts()
    states = ", ".join(f"{n:,} {state}" for state, n in counts.items() if n)
    return f"{len(matrix.losses):,} losses, {len(matrix.parts):,} parts: {states}; .to_dict() has each cell"


def _table(losses: Sequence[Sequence[str]], parts: Sequence[Sequence[str]], matrix: FlowMatrix) -> list[str] | None:
    """One line for each group of losses, one column for each group of parts; None if a screen cannot hold it."""
    if len(losses) > LINES or len(parts) > WIDTH // 3:
        return None
    above = common(matrix.parts)
    rows = [["", *(span([name.removeprefix(above) for name in part]) for part in parts)]]
    for loss in losses:
        rows.append([span(loss), *(_states([matrix[x, y] for x in loss for y in part]) for part in parts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return table if max(map(len, table)) <= WIDTH else None


def _states(cells: Sequence[Cell]) -> str:
    """What a group of cells of one state is: with the span of its norms."""
    low, high = (pick(cells, key=lambda cell: cell.norm) for pick in (min, max))
    return str(low) if str(low) == str(high) else f"{low}..{high.norm:.1e}"


def _runs(matrix: FlowMatrix, apart: Collection[str], *, rows: bool) -> list[list[str]]:
    """Neighbouring losses, or parts, that have the same states throughout; those ``apart`` stand alone."""
    names, others = (matrix.losses, matrix.parts) if rows else (matrix.parts, matrix.losses)
    told = matrix.told()
    states: dict[str, list[tuple[int, str]]] = {name: [] for name in names}
    place = {name: i for i, name in enumerate(others)}
    for (loss, part), cell in told.items():
        name, other = (loss, part) if rows else (part, loss)
        states[name].append((place[other], cell.state))
    keys = {name: tuple(sorted(found)) for name, found in states.items()}
    grouped = groupby(names, key=lambda name: (keys[name], name if name in apart else ""))
    return [list(group) for _, group in grouped]


def _rows(matrix: FlowMatrix, apart: Collection[str]) -> list[str]:
    """One line for each run of losses that go on alike: each reaches what the one before reaches, or its neighbours."""
    place = {part: i for i, part in enumerate(matrix.parts)}
    told: dict[str, dict[str, list[int]]] = {loss: {} for loss in matrix.losses}
    for (loss, part), cell in matrix.told().items():
        told[loss].setdefault(cell.state, []).append(place[part])
    rows = [(loss, {state: sorted(at) for state, at in told[loss].items()}) for loss in matrix.losses]
    runs: list[list[int]] = []
    step = None
    for i, (loss, row) in enumerate(rows):
        moved = _moved(rows[i - 1][1], row) if i else None
        alone = loss in apart or (i > 0 and rows[i - 1][0] in apart)
        if moved is None or alone or (len(runs[-1]) > 1 and moved != step):
            runs.append([i])
        else:
            runs[-1].append(i)
            step = moved
    lines = []
    shown = sorted(range(len(runs)), key=lambda i: rows[runs[i][0]][0] not in apart)[: LINES // 2]
    for run in (runs[i] for i in sorted(shown)):
        first, last = rows[run[0]], rows[run[-1]]
        lines.append(_row(matrix, *first))
        if len(run) > 2:
            lines.append(f"  ... {len(run) - 2:,} more in the same way, up to")
        if len(run) > 1:
            lines.append(_row(matrix, *last))
    hidden = len(rows) - sum(len(runs[i]) for i in shown)
    return lines + ([f"... {hidden:,} more losses, in {len(runs) - len(shown):,} ways"] if hidden else [])


def _moved(before: dict[str, list[int]], row: dict[str, list[int]]) -> dict[str, list[int]] | None:
    """By how many columns each state's parts moved from one loss to the next; None if by more than one."""
    if before.keys() != row.keys() or any(len(before[state]) != len(row[state]) for state in row):
        return None
    moved = {state: [b - a for a, b in zip(before[state], row[state], strict=True)] for state in row}
    return moved if all(step in (0, 1) for steps in moved.values() for step in steps) else None


def _row(matrix: FlowMatrix, loss: str, row: dict[str, list[int]]) -> str:
    """``loss3  open trunk 1.2e-01, head3 4.0e-02; independent 255 more``."""
    words, above = [], common(matrix.parts)
    for state, places in row.items():
        names = [matrix.parts[place] for place in places[:_NAMES]]
        norms = [f" {matrix[loss, name].norm:.1e}" if state == "open" else "" for name in names]
        told = [name.removeprefix(above) + norm for name, norm in zip(names, norms, strict=True)]
        more = f" and {len(places) - _NAMES:,} more" if len(places) > _NAMES else ""
        words.append(f"{state} {', '.join(told)}{more}")
    rest = len(matrix.parts) - sum(map(len, row.values()))
    return f"{loss}  {'; '.join([*words, *([f'independent {rest:,} more'] if rest else [])])}"


def reasons(matrix: FlowMatrix) -> list[str]:
    """The reasons, one line each; folded to one line for each reason if there are many."""
    found = matrix.reasons_of()
    if len(found) <= LINES:
        return matrix.reasons()
    by_reason: dict[str, list[Key]] = {}
    for key, reason in found:
        by_reason.setdefault(reason, []).append(key)
    lines = []
    for reason, keys in list(by_reason.items())[:LINES]:
        more = f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""
        lines.append(f"{keys[0][0]} -> {keys[0][1]}{more}: {reason}")
    hidden = len(by_reason) - LINES
    return lines + ([f"... {hidden:,} more reasons"] if hidden > 0 else [])


def shown(matrix: FlowMatrix, most: int) -> tuple[FlowMatrix, str]:
    """A matrix that is small enough to be drawn, and what was left out: alike neighbours are one row, or column."""
    if max(len(matrix.losses), len(matrix.parts)) <= most:
        return matrix, ""
    losses, parts = _runs(matrix, (), rows=True), _runs(matrix, (), rows=False)
    cells = {(span(x), span(y)): matrix[x[0], y[0]] for x in losses[:most] for y in parts[:most]}
    drawn = type(matrix)([span(part) for part in parts[:most]], cells)
    more = [
        f"{len(each) - most:,} more {name}" for each, name in ((losses, "losses"), (parts, "parts")) if len(each) > most
    ]
    return drawn, f"{' and '.join(more)} are not drawn" if more else ""
