"""How large a loss's gradient is on its way from one part of a picture to the next, measured in its own backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from stopgrad.cuts.torch_internals import without_overrides
from stopgrad.flow import measure
from stopgrad.flow.graph import ordered

Way = tuple[str, str]  # of a value: from one label to another; its gradient goes back


class _Slot:
    """What comes back along one way to one value: the sum of so many contributions."""

    def __init__(self, way: Way) -> None:
        self.way, self.due = way, 0
        self.total: Tensor | None = None


class Carried:
    """Hooks on the nodes of a loss's graph, from when it is made until :meth:`close`; its backward runs inside.

    Nothing is added to the graph, and no gradient changes. A graph of more nodes than are ever looked at is left alone:
    then it is not ``whole``.

    Args:
        loss: with a graph.
        name: the loss's label.
        labels_of: of a node, the labels that its gradient comes to, in order: none where it belongs to no part.
    """

    def __init__(self, loss: Tensor | None, name: str, labels_of: Callable[[Any], Sequence[str]]) -> None:
        self._handles: list[Any] = []
        self._norms: dict[Way, list[Tensor]] = {}
        self._open: dict[int, _Slot] = {}
        with without_overrides():
            order = ordered(loss.grad_fn) if loss is not None and loss.grad_fn is not None else []
            self.whole, self.looked = bool(order), len(order)
            self._hook(order, name, labels_of)

    @classmethod
    def nothing(cls) -> Carried:
        """Where nothing is measured."""
        return cls(None, "", lambda _: ())

    def __enter__(self) -> Carried:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hook(self, order: list[Any], name: str, labels_of: Callable[[Any], Sequence[str]]) -> None:
        comes: dict[Any, set[str]] = {}  # to a node of no part: the labels that its gradient comes from
        slots: dict[tuple[Any, int, Way], _Slot] = {}
        for node in reversed(order):
            labels = [name] if node is order[-1] else labels_of(node)
            here = {labels[-1]} if labels else comes.get(node, set())
            wanted: dict[int, list[_Slot]] = {}
            for i, (child, number) in enumerate(node.next_functions):
                if child is None:
                    continue
                there = labels_of(child)
                if not there:
                    comes.setdefault(child, set()).update(here)
                ways = [(there[0], label) for label in here if there and label != there[0]]
                ways += [(b, a) for a, b in pairwise(there)] if ways else []
                for way in ways:
                    slot = slots.setdefault((child, number, way), _Slot(way))
                    slot.due += 1
                    wanted.setdefault(i, []).append(slot)
            if wanted:
                self._handles.append(node.register_hook(self._watcher(wanted)))

    def _watcher(self, wanted: dict[int, list[_Slot]]) -> Callable[[Any, Any], None]:
        def came(inputs: Sequence[Tensor | None], _: Any) -> None:
            with without_overrides():
                for i, slots in wanted.items():
                    for slot in slots:
                        self._add(slot, inputs[i])

        return came

    def _add(self, slot: _Slot, grad: Tensor | None) -> None:
        slot.due -= 1
        if grad is not None:
            slot.total = grad if slot.total is None else slot.total + grad
            self._open[id(slot)] = slot
        if slot.due <= 0 and slot.total is not None:
            self._finish(slot)

    def _finish(self, slot: _Slot) -> None:
        """All has come: the norm is kept, and the gradient let go."""
        assert slot.total is not None
        self._norms.setdefault(slot.way, []).append(measure.norm(slot.total))
        slot.total = None
        del self._open[id(slot)]

    def close(self) -> None:
        """The backward has ended."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        with without_overrides():
            for slot in [*self._open.values()]:  # of which a part never came
                self._finish(slot)

    def norms(self, scale: float = 1.0) -> dict[Way, float]:
        """The norm over all values of each way, in the unit of the loss; of what came."""
        return {way: float(sum(float(n) ** 2 for n in each)) ** 0.5 / scale for way, each in self._norms.items()}
