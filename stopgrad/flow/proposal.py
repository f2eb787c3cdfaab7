"""The smallest cut that mends the leaks of an audit, found on its own value graph: told with a broken contract."""

from __future__ import annotations

import linecache
from collections.abc import Sequence

from stopgrad.flow.advice import Ways
from stopgrad.flow.flows import Cell, Flows
from stopgrad.flow.separate import Separation
from stopgrad.flow.values import LIVE, Values, place

_MOST_PATHS = 500  # a broken contract is told at once
Where = tuple[str, str, int]  # an operation, its file and its line


def proposal(ways: Ways | None, apart: Sequence[Cell], keep: Sequence[Cell]) -> str:
    """The smallest set of lines at which a value is to be detached, in words; "" where none does it.

    Args:
        apart: cells that leak.
        keep: cells whose gradient is to stay what it is.
    """
    if ways is None:
        return ""
    flows = flows_of(ways)
    apart = [cell for cell in apart if flows.reaches(*cell)]
    if not apart:
        return ""
    forbidden = set().union(*flows.kept(apart, keep).values())
    made: dict[Where, set[int]] = {}
    for vertex, following in enumerate(flows.after):
        file, line = ways.values.line(vertex)
        if following and file:
            made.setdefault((ways.values.op(vertex), file, line), set()).add(vertex)
    cuts = {where: frozenset(closes) for where, closes in made.items() if not closes & forbidden}
    answer = Separation(flows.after, [flows.wish(cell) for cell in apart], cuts, most_paths=_MOST_PATHS).smallest(
        most=3
    )
    if not answer.sets:
        return ""
    best = min(answer.sets, key=lambda chosen: sum(-min(made[where]) for where in chosen))  # the nearest to the losses
    told = "; ".join(_told(where) for where in sorted(best, key=lambda where: where[1:]))
    others = len(answer.sets) - 1
    more = f" ({others} other{'s' * (others > 1)} as small)" if others else ""
    return f"the smallest cut that mends it, on the values of this audit{more}: {told}"


def _told(where: Where) -> str:
    op, file, line = where
    source = linecache.getline(file, line).strip()
    return f"detach what {op} gives at {place(file, line)}{f', in `{source}`' if source else ''}"


def flows_of(ways: Ways) -> Flows:
    """The live part of a value graph behind some losses."""
    values: Values = ways.values
    losses = {loss: set(starts) for loss, starts in ways.losses.items()}
    after: list[list[int]] = [[] for _ in range(len(values))]
    seen: set[int] = set().union(*losses.values())
    stack = list(seen)
    while stack:
        vertex = stack.pop()
        if vertex < values.roots or not values.flags[vertex] & LIVE or values.cuts[vertex]:
            continue
        parents = dict.fromkeys(values.parents[values.first[vertex] : values.first[vertex + 1]])
        after[vertex] = [parent for parent in parents if values.flags[parent] & LIVE]
        fresh = set(after[vertex]) - seen
        seen |= fresh
        stack += fresh
    starts = {part: {v for v, bits in values.starts.items() if bits & bit} for part, bit in ways.bits.items()}
    return Flows(after, losses, starts)
