"""``assert_flow``: which parts a loss reaches, as one line of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from stopgrad.flow.audit import audit
from stopgrad.flow.contract import FlowContract
from stopgrad.flow.graph import Walk
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.measure import as_found
from stopgrad.flow.parts import Modules, find_parts, modules_in


def assert_flow(
    loss: Tensor | Callable[[], Tensor],
    modules: Modules,
    *,
    reaches: str | Sequence[str] = (),
    not_reaches: str | Sequence[str] = (),
    attached: str | Sequence[str] = (),
) -> None:
    """Assert which parts a loss reaches, and which it does not.

    Args:
        loss: a finished loss, before its backward; or a function that computes it, which also gives lines and
            reasons. The function runs once, and the model is left as it was: grads, buffers, random state, mode.
        modules: as for :class:`audit`.
        reaches: parts at which a gradient must arrive that is not zero; also dotted names of submodules and parameters,
            and wildcards, as in a :class:`FlowContract`.
        not_reaches: parts at which none may.
        attached: parts at which one must arrive, which may be zero.

    Raises:
        GradientLeak, GradientStarved: the assertion does not hold.
        ValueError: an unknown part, or a loss that is no scalar or has no graph.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    wanted: dict[str, str] = {}
    given = {"reaches": (reaches, "open"), "attached": (attached, "attached"), "not_reaches": (not_reaches, "blocked")}
    for key, (parts, state) in given.items():
        for part in [parts] if isinstance(parts, str) else parts:
            if part in wanted:
                before = next(other for other, (_, known) in given.items() if known == wanted[part])
                raise ValueError(f"assert_flow: {part!r} is in both {before} and {key}")
            wanted[part] = state
    if not wanted:
        raise ValueError("assert_flow: name at least one part in reaches, attached or not_reaches")
    contract = FlowContract({"loss": wanted})
    if not isinstance(loss, Tensor):
        a = audit(modules, contract=contract)
        with a, as_found(modules_in(modules), a.parts):
            a.loss("loss", loss())
            a.settle()
        return a.check(contract)
    if not loss.requires_grad:
        raise ValueError("loss has no graph: nothing that it uses requires grad; pass a function to learn the line")
    walk, parts = Walk(loss), find_parts(modules, asked=wanted)
    asked = [parts.of(part) for part in wanted]
    is_seen = walk.whole and not walk.opaque and all(asked)
    if {*wanted.values()} == {"blocked"} and is_seen and walk.leaves.keys().isdisjoint(id(t) for p in asked for t in p):
        return None  # absent from the graph: no need to measure
    with audit(modules, contract=contract) as a:
        a.loss("loss", loss)
    seen = a.matrix()
    cells = {key: _finished(cell) for key, cell in seen.items()}
    contract.check(FlowMatrix(seen.parts, cells, seen.losses, seen.facts))


def _finished(cell: Cell) -> Cell:
    """Of a finished loss, what its gradient does not reach is not reached, for whatever reason."""
    known = cell.state != "opaque" or "before the audit" not in cell.note
    return cell if known else Cell("blocked", note="pass a function to learn the line")
