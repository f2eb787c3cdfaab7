"""One audited batch of a training: the audit, the hooks, and the losses whose backward ran."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from stopgrad.audits.steps import StepWatch
from stopgrad.audits.writes import remove
from stopgrad.cuts.torch_internals import without_overrides
from stopgrad.flow import measure
from stopgrad.flow.audit import audit
from stopgrad.flow.carried import Carried
from stopgrad.flow.contract import FlowContract
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.routes import Record, flow_record
from stopgrad.flow.stepping import pass_by
from stopgrad.lightning.audit import boundaries_of, split_groups
from stopgrad.lightning.manual import scale_of
from stopgrad.lightning.names import loss_being_named


def plain_optimizers(trainer: Trainer) -> list[Optimizer]:
    return [getattr(o, "optimizer", o) for o in trainer.optimizers]


@dataclass
class _Report:
    """One backward: its loss, its name (or None while it is unknown), the scale of the loss (fp16), and the norms of
    what arrived, scaled."""

    loss: Tensor
    name: str | None
    scale: float
    carried: Carried
    norms: dict[int, list[Tensor]] = field(default_factory=dict)
    crossings: dict[str, list[Tensor]] = field(default_factory=dict)
    fallback: bool = False

    @cached_property
    def lengths(self) -> dict[int, float]:
        """The norm of what arrived at each parameter, scaled; asked for when all has arrived."""
        with without_overrides():
            joined = [_joined(got) for got in self.norms.values()]
        return {
            key: length for key, length in zip(self.norms, measure.numbers(joined), strict=True) if length is not None
        }


class FlowRun:
    """One audited batch, until :meth:`close`.

    Args:
        draw: also note what a picture of it shows.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, contract: FlowContract, draw: bool) -> None:
        self.trainer = trainer
        self.automatic = module.automatic_optimization
        self.reports: list[_Report] = []
        self.current: _Report | None = None
        modules, parts = split_groups(module)
        self.audit = audit(modules, parts=parts, contract=contract, boundaries=boundaries_of(module), draw=draw)
        self.zeros = measure.zero_parameters(t for part in self.audit.parts.values() for t in part)
        self.audit.__enter__()
        self.audit.on_crossing(self._watch_crossing)
        self.handles = [register_optimizer_step_pre_hook(self.on_step)]
        for optimizer in plain_optimizers(trainer):
            self.handles += pass_by(optimizer)
        with without_overrides():
            for tensor in {id(t): t for part in self.audit.parts.values() for t in part}.values():
                if tensor.is_floating_point() or tensor.is_complex():
                    self.handles.append(self._watch_parameter(tensor))

    def close(self) -> None:
        try:
            if self.current is not None:
                self.current.carried.close()  # its backward raised
            remove(self.handles)
        finally:
            self.audit.__exit__()
            self.reports.clear()

    def _watch_parameter(self, tensor: Tensor) -> RemovableHandle:
        frozen = not tensor.requires_grad
        tensor.requires_grad_(True)  # to set a hook; a frozen one may be toggled on within the step
        handle = tensor.register_hook(lambda grad: self._arrived("norms", id(tensor), grad))
        tensor.requires_grad_(not frozen)
        return handle

    def _watch_crossing(self, boundary: str, tensor: Tensor) -> None:
        tensor.register_hook(lambda grad: self._arrived("crossings", boundary, grad))

    def _arrived(self, store: str, key: Any, grad: Tensor) -> None:
        if self.current is not None:
            getattr(self.current, store).setdefault(key, []).append(measure.norm(grad))

    def begin(self, loss: Tensor) -> None:
        """A backward begins."""
        name = loss_being_named()
        self.audit.admit(name or "unnamed", loss)
        self.current = _Report(loss, name, scale_of(self.trainer), self.audit.carry(loss), fallback=name is None)

    def end(self) -> None:
        """A backward has ended: the gradients that arrived are those of its loss."""
        if self.current is not None:
            self.current.carried.close()
            self.reports.append(self.current)
            self.current = None

    def on_step(self, optimizer: Any, *_: Any) -> None:
        """An optimiser steps: what has no name takes its."""
        index = next((i for i, o in enumerate(plain_optimizers(self.trainer)) if o is optimizer), None)
        if index is not None and not self.automatic:
            for report in self.reports:
                report.name = report.name or f"optimizer_{index}"

    def tell(self, steps: StepWatch) -> None:
        """What was measured, for the findings about the optimisers."""
        for report in self.reports:
            steps.touched.update(report.lengths)
            steps.reached.update(key for key, length in report.lengths.items() if length > 0)

    @property
    def overflowed(self) -> bool:
        """Whether a scaled gradient left the range of fp16: its scaler will go on with a smaller scale."""
        norms = (norm for report in self.reports if report.scale != 1 for got in report.norms.values() for norm in got)
        return not all(math.isfinite(norm) for norm in norms)

    def matrix(self, declared: Sequence[str]) -> FlowMatrix:
        """The matrix of all losses of the batch, under their final names."""
        for order, report in enumerate(r for r in self.reports if r.name is None):
            report.name = "loss" if self.automatic else f"loss_{order}"
        unnamed = list(dict.fromkeys(r.name for r in self.reports if r.fallback))
        rename = dict(zip(unnamed, declared, strict=True)) if len(unnamed) == len(declared) else {}
        for report in self.reports:
            norms = {key: length / report.scale for key, length in report.lengths.items()}
            with without_overrides():
                crossings = {name: [float(n) / report.scale for n in got] for name, got in report.crossings.items()}
            name = rename.get(report.name, report.name) if report.fallback else report.name
            drawn = {"carried": report.carried, "scale": report.scale}
            self.audit.record(str(name), report.loss, norms, crossings, zeros=self.zeros, **drawn)
        return self.audit.matrix()

    def record(self) -> Record | None:
        """What a picture of the batch shows, after :meth:`matrix`; None if it has no loss, or is not to be drawn."""
        return flow_record(self.audit) if self.audit.draw and self.audit.loss_values else None


def _joined(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a gradient that arrived in several pieces (a reentrant checkpoint), taken as orthogonal."""
    return norms[0] if len(norms) == 1 else torch.stack(list(norms)).norm()
