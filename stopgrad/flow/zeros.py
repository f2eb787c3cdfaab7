"""Where a gradient became zero: the operations that got one and passed none on to a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from stopgrad.cuts.torch_internals import sequence_number
from stopgrad.flow.graph import hands_on

Ways = dict[Any, list[tuple[int, Any]]]  # nodes, each with some of its edges: which of them, and to which node

# Operations that may make a gradient zero, where it was not measured which one did.
SUSPECTS = frozenset(
    (
        *("clamp", "clip", "clamp_", "clamp_min", "clamp_max", "hardtanh", "relu", "relu_", "relu6", "threshold"),
        *("round", "floor", "ceil", "trunc", "sign", "fmod", "max", "min", "amax", "amin", "maximum", "minimum"),
        *("where", "masked_fill", "masked_fill_", "mul", "mul_", "rmul", "sigmoid", "tanh", "softmax", "gather"),
    )
)


def leading(order: Iterable[Any], targets: Sequence[Tensor]) -> Ways:
    """The nodes on a way to some tensors, each with its edges on such ways. What lies behind a node comes before it."""
    ends = {id(t) for t in targets if t.is_leaf}, {t.grad_fn for t in targets if not t.is_leaf}
    ways: Ways = {}
    for node in order:
        edges = [(i, child) for i, (child, _) in enumerate(node.next_functions) if child in ways]
        variable = getattr(node, "variable", None)
        if edges or node in ends[1] or (variable is not None and id(variable) in ends[0]):
            ways[node] = [] if node in ends[1] else edges
    return ways


def blamed(died: Collection[Any], ways: Ways) -> list[Any]:
    """Of the nodes at which a gradient became zero those that made it so, nearest to the loss first."""
    return sorted(_makers(died, ways), key=sequence_number, reverse=True)


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
