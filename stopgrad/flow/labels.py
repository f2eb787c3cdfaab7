"""Which part of a flow picture a value belongs to: a part of the model, a boundary, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from stopgrad.flow.advice import PRODUCTS, VIEWS
from stopgrad.flow.fold import span
from stopgrad.flow.lookup import named_parameters
from stopgrad.flow.values import Values, place

_PRODUCTS, _VIEWS = {*PRODUCTS, "baddbmm", "embedding"}, {*VIEWS, "getitem"}
MOST_NODES = 24  # parts that are drawn: of more, neighbours are one


class Labels:
    """Which part of the picture a value belongs to.

    Args:
        parts: the parts that a parameter is in, by its ``id``, the one it is drawn in first.
        names: of the modules.
        order: of the parts.
    """

    def __init__(
        self, parts: Mapping[int, Sequence[str]], names: Mapping[nn.Module, str], order: Sequence[str]
    ) -> None:
        self._parts = parts
        modules = {name: self._label(module, name) for module, name in names.items()}
        drawn = list(dict.fromkeys([*(p for p in order if not p.startswith("stop.")), *modules.values()]))
        shown = folded([name for name in drawn if name], MOST_NODES)
        self.modules = {name: shown.get(label, "") for name, label in modules.items()}
        self._roots = {key: shown[each[0]] for key, each in parts.items()}
        self.drawn = {*shown.values()}
        self._known: dict[int, str] = {}

    def _label(self, module: nn.Module, name: str) -> str:
        """The part that has all parameters of a module; the outermost module's name if they are in none."""
        found = {self._parts.get(id(p), ("",))[0] for _, p in named_parameters(module)}
        if found == {""}:
            return name.partition(".")[0]
        return found.pop() if len(found) == 1 else ""

    def of_parameter(self, parameter: Tensor) -> str:
        return self._roots.get(id(parameter), "")

    def note_roots(self, roots: Iterable[Tensor]) -> None:
        """The parameters that are the first values."""
        self._known = {index: self.of_parameter(root) for index, root in enumerate(roots)}

    def of(self, values: Values, index: int) -> list[str]:
        """The label of a value; of what crossed by ``freeze``, the boundary's and then that of what made it."""
        if index < values.roots:
            return [self._known.get(index, "")]
        op = values.op(index)
        if op.startswith("stop."):  # crossed inside of a part, it is the part's own
            inside = self.modules.get(values.module(index), "")
            return [f"{op}@{place(*values.line(index))}{f'#{inside}' if inside else ''}"]
        if op == "freeze" and (crossing := _frozen_crossing(values, index)) is not None:
            before = values.parents[values.first[index]]
            return [*self.of(values, crossing), *(self.of(values, before) if before != index else [])]
        label = self.modules.get(values.module(index), "") or self._by_weight(values, index)
        return [label] if label else []

    def _by_weight(self, values: Values, index: int) -> str:
        """The part whose weight an operation multiplies by outside of all modules: in a method of one, as a rule."""
        if values.op(index) not in _PRODUCTS:
            return ""
        each = values.parents[values.first[index] : values.first[index + 1]]
        return next((label for parent in each if (label := self._bare(values, parent))), "")

    def _bare(self, values: Values, index: int) -> str:
        """The part of a parameter, or of a view of one; "" of anything else."""
        while index >= values.roots:
            each = values.parents[values.first[index] : values.first[index + 1]]
            if len(each) != 1 or not (values.op(index) in _VIEWS or (each[0] < values.roots and values.cuts[index])):
                return ""
            index = each[0]
        return self._known.get(index, "")


def _frozen_crossing(values: Values, index: int) -> int | None:
    """The crossing of the boundary whose ``freeze`` made a value what it is."""
    *_, frozen = values.parents[values.first[index] : values.first[index + 1]] or [index]
    if frozen != index and values.op(frozen) == "freeze" and values.cuts[frozen]:
        return values.parents[values.first[frozen]]
    return None


def folded(names: Sequence[str], most: int) -> dict[str, str]:
    """Each name's, or of too many, that of the neighbours together with which it is drawn."""
    if len(names) <= most:
        return {name: name for name in names}
    size = math.ceil(len(names) / most)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    return {name: span(group) for group in groups for name in group}
