"""Where a gradient became zero: the operations that got one and passed none on to a part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from stopgrad.cuts.torch_internals import sequence_number
from stopgrad.flow.graph import hands_on, ordered
from stopgrad.flow.measure import norm

Ways = dict[Any, list[tuple[int, Any]]]  # nodes, each with some of its edges: which of them, and to which node

# Operations that may make a gradient zero, where it was not measured which one did.
SUSPECTS = frozenset(
    (
        *("clamp", "clip", "clamp_", "clamp_min", "clamp_max", "hardtanh", "relu", "relu_", "relu6", "threshold"),
        *("round", "floor", "ceil", "trunc", "sign", "fmod", "max", "min", "amax", "amin", "maximum", "minimum"),
        *("where", "masked_fill", "masked_fill_", "mul", "mul_", "rmul", "sigmoid", "tanh", "softmax", "gather"),
    )
)


def died_at(
    loss: Tensor, targets: Sequence[Tensor], floor: float, backward: Callable[[Sequence[Tensor]], Any]
) -> list[Any]:
    """The nodes that got a gradient and passed on none that is larger than ``floor``, nearest to the loss first.

    Args:
        targets: leaves or other tensors at which nothing larger than ``floor`` arrives.
        backward: takes the gradient of ``loss`` at some tensors, while hooks stand on the nodes.
    """
    ways = leading(loss, targets)
    died: set[Any] = set()

    def after(node: Any, passed: Sequence[Tensor | None], got: Sequence[Tensor | None]) -> None:
        if _any(got, floor) and not all(_any([passed[i]], floor) for i, _ in ways[node]):
            died.add(node)

    handles = [node.register_hook(partial(after, node)) for node, edges in ways.items() if edges]
    try:
        backward(targets)
    finally:
        for handle in handles:
            handle.remove()
    return blamed(died, ways)


def leading(loss: Tensor, targets: Sequence[Tensor]) -> Ways:
    """The nodes on a way from a loss to some tensors, each with its edges on such ways, the first of them last."""
    order = ordered(loss.grad_fn)
    ends = {id(t) for t in targets if t.is_leaf}, {t.grad_fn for t in targets if not t.is_leaf}
    ways: Ways = {}
    for node in order:  # what lies behind a node comes before it
        edges = [(i, child) for i, (child, _) in enumerate(node.next_functions) if child in ways]
        variable = getattr(node, "variable", None)
        if edges or node in ends[1] or (variable is not None and id(variable) in ends[0]):
            ways[node] = [] if node in ends[1] else edges
    return ways


def blamed(died: Collection[Any], ways: Ways) -> list[Any]:
    """Of the nodes at which a gradient became zero those that made it so, nearest to the loss first."""
    return sorted(_makers(died, ways), key=sequence_number, reverse=True)


def _any(grads: Sequence[Tensor | None], floor: float) -> bool:
    return any(g is not None and float(norm(g)) > floor for g in grads)


def _makers(died: Collection[Any], ways: Ways) -> set[Any]:
    """In place of a node that only hands on zeros, those that handed them to it."""
    users: dict[Any, list[Any]] = {}
    for node, edges in ways.items():
        for _, child in edges:
            users.setdefault(child, []).append(node)
    found, stack, seen = set(), list(died), set(died)
    while stack:
        node = stack.pop()
        joins = hands_on(node) or node.name().startswith(("Cat", "Stack"))
        before = users.get(node, []) if joins else []
        if not before:
            found.add(node)
        for user in before:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return found


def suspected(path: Sequence[str]) -> str:
    """What may have made a gradient zero that was not followed."""
    found = [step for step in path if step.partition(" ")[0] in SUSPECTS]
    return f"on its way are {', '.join(found[:4])}" if found else ""
