"""One matrix of the cycles that were measured, under the names that were found last."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.parts import FROZEN


def renamed(matrix: FlowMatrix, names: Mapping[str, str]) -> FlowMatrix:
    """The matrix with other names for its parts; parts that get one name become one."""
    cells: dict[tuple[str, str], Cell] = {}
    for (loss, part), cell in matrix.told().items():
        key = loss, names.get(part, part)
        cells[key] = _merged(cells[key], cell) if key in cells else cell
    return FlowMatrix(list(dict.fromkeys(names.get(p, p) for p in matrix.parts)), cells, matrix.losses, matrix.facts)


def joined(older: FlowMatrix | None, newer: FlowMatrix) -> FlowMatrix:
    """Both in one. What could not be told in one cycle is told by another."""
    if older is None:
        return newer
    cells = dict(older.told())
    for key, cell in newer.told().items():
        cells[key] = _merged(cells[key], cell) if key in cells else cell
    losses, parts = (list(dict.fromkeys(a + b)) for a, b in ((older.losses, newer.losses), (older.parts, newer.parts)))
    return FlowMatrix(parts, cells, losses, newer.facts)


def _merged(one: Cell, other: Cell) -> Cell:
    if "opaque" in (one.state, other.state) and one.state != other.state:
        return other if one.state == "opaque" else one
    return one.merge(other)


def shown(matrix: FlowMatrix, parts: Collection[str]) -> FlowMatrix:
    """These parts alone, and no ``item()``: a number that left, to be printed, is no proof that it came back.

    Of a part that is called frozen no cut is shown: its name says why, and a large model would have one for each layer.
    """
    told = {key: cell for key, cell in matrix.told().items() if cell.state != "independent"}
    told = {
        (loss, part): replace(cell, cuts=()) if part.endswith(FROZEN) else cell for (loss, part), cell in told.items()
    }
    return FlowMatrix([part for part in matrix.parts if part in parts], told, matrix.losses, matrix.facts)
