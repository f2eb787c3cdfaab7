"""What to do about a leak, or about a part that is not reached: a line, plain PyTorch, and the switch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stopgrad.flow.steps import shown
from stopgrad.flow.values import ENDS, LIVE, CutSite, Values, place

if TYPE_CHECKING:
    from stopgrad.flow.matrix import Cell, FlowMatrix

# Operations that multiply a gradient by a parameter: by any, or by one that is a matrix and not a bias.
_SCALES = ("mul", "rmul")
PRODUCTS = ("linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d")
VIEWS = ("T", "mT", "t", "transpose", "permute", "view", "reshape", "unsqueeze", "expand", "to", "type", "contiguous")


@dataclass(frozen=True)
class Facts:
    """What an audit knows of the parts besides the cells.

    Attributes:
        tied: for each part, the names of the parameters that it shares, by the part with which.
        standing: parts of which no parameter requires grad.
        ways: how gradient gets from a loss to a part.
        unions: other names for parts, or for several together.
    """

    tied: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    standing: frozenset[str] = frozenset()
    ways: Ways | None = None
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Ways:
    """The live ways from losses to parts in a value graph.

    Args:
        losses: the values of each loss.
        bits: the bit of each part.
    """

    def __init__(self, values: Values, losses: Mapping[str, Sequence[int]], bits: Mapping[str, int]) -> None:
        self.values, self.losses, self.bits = values, losses, bits

    def crossing(self, loss: str, part: str) -> str:
        """The line of the operation of a part that is nearest to the loss, where its value leaves it; "" if unknown."""
        for value in self.losses.get(loss, ()):
            for index in self._live(value, 0):
                if self._applies(index, self.bits[part]):
                    file, line = self.values.line(index)
                    return place(file, line) if file else ""
        return ""

    def needed_for(self, loss: str, part: str, others: Collection[str]) -> list[str]:
        """Those of the other parts that the loss reaches through operations of ``part`` alone."""
        bit, found = self.bits[part], []
        for value in self.losses.get(loss, ()):
            around, through = self._reached(value, bit), self._reached(value, 0)
            found += [p for p in others if p != part and self.bits[p] & through & ~around]
        return list(dict.fromkeys(found))

    def multiplied_by(self, loss: str, part: str, factors: Mapping[int, int]) -> set[int]:
        """The factors by which every live way from the loss to the part is multiplied, those next to the part.

        Args:
            factors: the values of some parameters, and how many dimensions each has.

        Returns:
            their values; none where a way leads past all of them.
        """
        values, bit, found = self.values, self.bits[part], set[int]()
        known = {value: {value} for value in factors}  # with them, transposed and reshaped
        open_to = {root for root in range(values.roots) if values.starts.get(root, 0) & bit}
        for value in self.losses.get(loss, ()):
            for index in reversed(self._live(value, 0)):  # from the part to the loss
                parents = values.parents[values.first[index] : values.first[index + 1]]
                op, taken = values.op(index), set().union(*(known.get(parent, ()) for parent in parents))
                leads = not values.cuts[index] and any(p in open_to and values.flags[p] & LIVE for p in parents)
                leads |= bool(values.starts.get(index, 0) & bit)
                if op in VIEWS and taken:
                    known[index] = taken
                by = {one for one in taken if op in _SCALES or (op in PRODUCTS and factors[one] > 1)}
                if leads and not by:
                    open_to.add(index)
                found |= by if leads else set()
            if value in open_to:
                return set()
        return found

    def _applies(self, index: int, bit: int) -> bool:
        """An operation takes a parameter of the part, or is the crossing of the boundary."""
        values = self.values
        each = values.parents[values.first[index] : values.first[index + 1]]
        starts = values.starts.get(index, 0)  # of a boundary: what crosses it
        return bool(starts & bit) or any(parent < values.roots and values.starts[parent] & bit for parent in each)

    def _reached(self, loss: int, closed: int) -> int:
        """The bits of the parts that are reached, if gradient passes no operation of the part ``closed``."""
        values = self.values
        found = values.starts.get(loss, 0)
        for index in self._live(loss, closed):
            if not (closed and self._applies(index, closed)):
                found |= values.starts.get(index, 0)
                for parent in values.parents[values.first[index] : values.first[index + 1]]:
                    found |= values.starts[parent] if parent < values.roots else 0
        return found

    def _live(self, loss: int, closed: int) -> list[int]:
        """The values along which gradient flows, newest first."""
        values, order, index = self.values, [], loss
        seen = bytearray(loss + 1)
        while index >= values.roots:
            order.append(index)
            if values.flags[index] & LIVE and not values.cuts[index] and not (closed and self._applies(index, closed)):
                for parent in values.parents[values.first[index] : values.first[index + 1]]:
                    seen[parent] = values.flags[parent] & LIVE
            index = seen.rfind(LIVE, 0, index)
        return order


def leak(matrix: FlowMatrix, loss: str, part: str, wanted: Collection[str], frozen: Collection[str]) -> str:
    """The words for a loss that reaches a part which must not be reached.

    Args:
        wanted: the parts that this loss must reach.
        frozen: the parts that no loss may reach.
    """
    cell = matrix[loss, part]
    strength = f"norm {cell.norm:.3g}, {matrix.share(loss, part):.0%} of all that the reported losses send there"
    if cell.state == "zero":
        strength = "a gradient that is numerically zero, but not absent"
    lines = [f"{loss} reaches {part}, which the contract calls blocked: {strength}"]
    if cell.path:
        lines.append(f"  through {' <- '.join(_shortened(cell.path))}")
    return "\n".join([*lines, f"  to stop it, {_cure(matrix, loss, part, wanted, frozen)}"])


def _cure(matrix: FlowMatrix, loss: str, part: str, wanted: Collection[str], frozen: Collection[str]) -> str:
    facts = matrix.facts
    if part.startswith("stop."):
        return _switched(facts, loss, part, wanted)
    tied = facts.tied.get(part, {})
    reached = [other for other in tied if matrix[loss, other].state == "open"]
    if reached and (part not in frozen or set(reached) & set(wanted)):
        return (
            f"untie them (copy.deepcopy, or a parameter of its own): {_names(tied)} is one and the same, so that no "
            f"cut at {part} keeps out what comes through {', '.join(reached)}"
        )
    if part in frozen:
        one = f"set {part}.requires_grad_(False), or leave it out of the optimiser's groups"
        return f"{one}; it is tied, so that stands still too: {_names(tied)}" if tied else one
    behind = facts.ways.needed_for(loss, part, wanted) if facts.ways else []
    if behind:
        switch = f"set stop.{part}=freeze" if f"stop.{part}" in matrix.parts else f"Boundary({part!r}, 'freeze')"
        return (
            f"freeze {part} while it is called, since the gradient of {', '.join(behind)} passes through it: "
            f"{part}.requires_grad_(False) before the call and (True) after it, or {switch}"
        )
    line = facts.ways.crossing(loss, part) if facts.ways else ""
    at = f"the value that leaves it at {line}" if line else "the value where it crosses"
    cut = f"cut {at}: .detach(), or torch.no_grad() around the call"
    own = f"stop.{part}"
    if own in matrix.parts and matrix[loss, own].state in ("open", "zero"):
        return f"{cut}, or set {own}=detach"
    blocked = [p for p in matrix.parts if p.startswith("stop.") and matrix[loss, p].state == "blocked"]
    if own in matrix.parts or blocked:
        return f"{cut}; this way does not cross {', '.join(blocked) or own}"
    return f"{cut}, or Boundary({part!r}, 'detach')"


def _switched(facts: Facts, loss: str, part: str, wanted: Collection[str]) -> str:
    """A boundary that is open: which choice closes it."""
    behind = facts.ways.needed_for(loss, part, wanted) if facts.ways else []
    if behind:
        return (
            f"set {part}=freeze, since the gradient of {', '.join(behind)} passes there: in plain PyTorch, "
            "requires_grad_(False) on what is called, while it is"
        )
    return f"set {part}=detach: in plain PyTorch, .detach() on what crosses"


def _names(tied: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(tied.values()))


def starved(matrix: FlowMatrix, loss: str, part: str, wanted: str = "open") -> str:
    """The words for a loss that does not reach a part which it must reach."""
    cell = matrix[loss, part]
    reason = {
        "zero": f"the gradient arrives, but is numerically zero{_why_zero(cell)}",
        "independent": "the loss does not depend on it",
        "blocked": "the loss depends on it, but the gradient was stopped",
    }[cell.state]
    lines = [f"{loss} does not reach {part}, which the contract calls {wanted}: {reason}"]
    if cell.zeros:
        lines.append("  if that is how it begins, as LoRA's B does, call the part 'attached': then a zero will do")
    elif cell.state == "zero":
        lines += [f"  it became zero at {where}" for where in cell.died]
    else:
        lines += [f"  {'stopped by' if cell.state == 'blocked' else 'it left PyTorch by'} {cut}" for cut in cell.cuts]
    if cell.state == "blocked":
        lines.append(f"  {_opening(matrix, part, cell.cuts)}")
    elif cell.state == "independent" and part in matrix.facts.standing:
        lines.append(f"  nor could gradient arrive there: none of its parameters requires grad; {_thaw(part)}")
    return "\n".join(lines)


def zeros(names: Sequence[str]) -> str:
    """Parameters that are all zeros, in words."""
    return f"{shown(names)}, {'which is' if len(names) == 1 else 'which are'} all zeros"


def _why_zero(cell: Cell) -> str:
    if cell.zeros:
        return f", since every way there is multiplied by {zeros(cell.zeros)}"
    if cell.died:
        return ""
    return f"; {cell.note}" if cell.note else " (a dead unit, a saturated clamp, a factor 0, ways that cancel)"


def _thaw(part: str) -> str:
    return f"set {part}.requires_grad_(True)"


def _opening(matrix: FlowMatrix, part: str, cuts: Sequence[CutSite]) -> str:
    if part in matrix.facts.standing and not any(cut.boundary for cut in cuts):
        return f"none of its parameters requires grad: {_thaw(part)}"
    if not cuts:
        return "no operation seen stops it: a Function?"
    cures = dict.fromkeys(_cure_of(cut, part) for cut in cuts)
    return f"to let it through, {', and '.join(cures)}"


def _cure_of(cut: CutSite, part: str) -> str:
    if cut.boundary is not None:
        return f"set stop.{cut.boundary}=none"
    if cut.kind == "requires_grad":
        return f"set requires_grad_(True) on {cut.op or part}"
    if cut.is_reentrant:
        return f"pass use_reentrant=False to the checkpoint at {place(cut.file, cut.line)}"
    return "remove that cut"


def _shortened(path: Sequence[str], ends: int = ENDS) -> list[str]:
    if len(path) <= 2 * ends + 1:
        return list(path)
    return [*path[:ends], f"... {len(path) - 2 * ends} more ...", *path[-ends:]]
