"""The watch over a script: the books of every cycle, and the matrix of the first ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stopgrad.flow import measure
from stopgrad.flow.audit import audit
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.watch.ledger import Ledger
from stopgrad.watch.names import loss_name, user_frames, variable_of
from stopgrad.watch.parts import Parts


class Watch:
    """Listens to a script that trains (see :func:`stopgrad.watch.hooks.overhear`).

    A cycle goes from a clearing of gradients to the last step before the same gradients are cleared again. The matrix
    is measured on the first ``cycles`` of them and then on every ``every``-th, by hooks in the script's own backwards.

    Args:
        cycles: how many cycles from the first are measured.
        every: and then every so many; 0 for none.
        books: so many cycles are written down in full; afterwards, those that are measured.
    """

    def __init__(self, cycles: int = 3, every: int = 100, books: int = 30) -> None:
        self.cycles, self.every, self.books = cycles, every, books
        self.ledger = Ledger()
        self.parts = Parts()
        self.matrix: FlowMatrix | None = None
        self.home: dict[int, str] = {}  # id of a parameter -> its part
        self.cycle = 0
        self.notes: list[str] = []  # what was not seen
        self._cleared: set[int] = set()
        self._stepped = False
        self._span: _Span | None = None
        self._looked: set[tuple[str, int]] = set()

    # ---- what is overheard

    def made(self, optimizer: Optimizer) -> None:
        self.ledger.optimizer(optimizer, "", _line())
        self.parts.look()
        if self._measured():
            self._begin()

    def before_clear(self, owner: Optimizer | nn.Module) -> None:
        if self._stepped and id(owner) in self._cleared:
            self._next_cycle()
        self._cleared.add(id(owner))

    def before_backward(self, tensors: Any) -> None:
        if self._written():
            self.ledger.before_backward()
        loss = _scalar(tensors)
        if self._span is not None and loss is not None:
            name, *place = loss_name()
            if tuple(place) not in self._looked:
                self._looked.add((str(place[0]), int(place[1])))
                self.parts.look()
            self._span.begin(name, loss)

    def after_backward(self, tensors: Any) -> None:
        if self._written():
            self.ledger.after_backward(*loss_name())
            if self.ledger.number <= 2:
                self._name()
        if self._span is not None:
            self._span.end()

    def before_step(self, optimizer: Optimizer) -> None:
        if id(optimizer) not in self.ledger.optimizers:  # made before the watch began
            self.ledger.optimizer(optimizer, "", ("", 0))
        known = self.ledger.optimizers[id(optimizer)]
        known.name = known.name or variable_of(optimizer)
        if self._written():
            self.ledger.step(optimizer, _line())

    def after_step(self, optimizer: Optimizer) -> None:
        self._stepped = True

    def close(self) -> None:
        """The script has ended."""
        self._name()
        if self._written():
            self.ledger.settle()
        self._end()

    # ---- cycles and spans

    def _written(self) -> bool:
        return self.cycle < self.books or self._measured()

    def _measured(self) -> bool:
        return self.cycle < self.cycles or bool(self.every and self.cycle % self.every == 0)

    def _name(self) -> None:
        """Say which part each parameter belongs to, while the modules are alive."""
        for name, tensors in self.parts.of(self.ledger.parameters()).items():
            self.home.update((id(p), name) for p in tensors)

    def _next_cycle(self) -> None:
        if self._written():
            self._name()
        self._end()
        self.cycle += 1
        self._cleared.clear()
        self._stepped = False
        if self._measured():
            self._begin()

    def _begin(self) -> None:
        self._end()
        parameters = self.ledger.parameters()
        if parameters and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            self._span = _Span(self.parts.of(parameters))

    def _end(self) -> None:
        if self._span is None:
            return
        span, self._span = self._span, None
        seen = span.close()
        if seen is not None and seen.losses:
            self.matrix = seen if self.matrix is None else self.matrix.updated(seen)


class _Span:
    """A cycle that is measured: the audit that follows its values, and the norms that arrive in its backwards."""

    def __init__(self, parts: dict[str, list[Tensor]]) -> None:
        self.reports: list[tuple[str, Tensor, dict[int, list[Tensor]]]] = []
        self.current: dict[int, list[Tensor]] | None = None
        self.audit = audit(parts)
        self.audit.__enter__()
        self.handles: list[RemovableHandle] = []
        for tensor in {id(t): t for part in parts.values() for t in part}.values():
            if tensor.requires_grad and tensor.is_leaf:
                self.handles.append(tensor.register_hook(self._arrived(id(tensor))))

    def _arrived(self, key: int) -> Any:
        def note(grad: Tensor) -> None:
            if self.current is not None:
                self.current.setdefault(key, []).append(measure.norm(grad))

        return note

    def begin(self, name: str, loss: Tensor) -> None:
        try:
            self.audit.admit(name, loss)
        except ValueError:  # no scalar, no graph, or the same graph once more: the script's own backward will tell
            return
        self.current = {}
        self.reports.append((name, loss, self.current))

    def end(self) -> None:
        self.current = None

    def close(self) -> FlowMatrix | None:
        for handle in self.handles:
            handle.remove()
        try:
            for name, loss, norms in self.reports:
                totals = {key: float(torch.stack(got).norm()) for key, got in norms.items()}
                self.audit.record(name, loss, totals, {})
            return self.audit.matrix() if self.reports else None
        finally:
            self.audit.__exit__()


def _scalar(tensors: Any) -> Tensor | None:
    """The one loss of a backward; of several, none."""
    if isinstance(tensors, Tensor):
        return tensors
    tensors = list(tensors) if isinstance(tensors, list | tuple) else []
    return tensors[0] if len(tensors) == 1 and isinstance(tensors[0], Tensor) else None


def _line() -> tuple[str, int]:
    frame = next(user_frames(), None)
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
