"""``FlowAudit``: where the gradient of each loss of a training goes, measured in its own backward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from stopgrad.flow import measure
from stopgrad.flow.audit import audit
from stopgrad.flow.contract import FlowContract, Violation, raise_for
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.pictures import matrix_figure
from stopgrad.lightning.audit import Audit, boundaries_of, groups_of, over_ranks
from stopgrad.lightning.names import is_unaudited, loss_being_named

OPENING = 20  # batches in which every loss of a contract is awaited


class FlowAudit(Audit):
    """Audit the gradient flow of a training at its first batch, and then every n batches.

    A loss that the contract names may come later than the first batch, such as a generator's that steps every third
    time: the first audit goes on until it has seen every one, for 20 batches at most, and judges them together.

    The gradient is measured by hooks in the real backward: no extra pass, and what DDP later averages is not in it.
    Losses are named by :func:`loss_name`. An unnamed one takes the name of the optimiser that steps next
    (``optimizer_0``; with none, ``loss_0`` and so on by order; under automatic optimisation ``loss``), and where the
    contract has as many losses as there are such names, the contract's names, in order.

    Args:
        every_n_steps: audit every n-th batch; None for the beginning of each fit alone.
        on_violation: ``raise`` an error that names loss, part, path and cut, on all ranks; ``warn`` with it; or
            ``record``: say nothing, and keep it in ``violations``.
        contract: what to check; by default the module's ``FLOW``, if it has one.

    Attributes:
        matrix: the last :class:`~stopgrad.FlowMatrix`, or None.
        violations: what the last audit found.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        on_violation: str = "raise",
        contract: FlowContract | None = None,
    ) -> None:
        super().__init__(every_n_steps, on_violation)
        self.contract = contract
        self.matrix: FlowMatrix | None = None
        self.violations: list[Violation] = []
        self._run: _FlowRun | None = None
        self._opening = OPENING

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._opening = OPENING
        self.matrix = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._opening or (self.every_n_steps and self.batches % self.every_n_steps == 0):
            self._run = _FlowRun(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._run is not None and not is_unaudited():
            self._run.begin(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            self._run.end()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self._run is None:
            return
        contract = self._contract(pl_module)
        try:
            seen = self._run.matrix(list(contract))
        finally:
            self._close()
        self.matrix = seen if self.matrix is None else self.matrix.updated(seen)
        if self._opening:
            awaited = [name for name in contract if "*" not in name and name not in self.matrix.losses]
            self._opening = self._opening - 1 if awaited else 0
        if not self._opening:
            self._judge(trainer, contract)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._opening and self.matrix is not None:
            self._opening = 0
            self._judge(trainer, self._contract(pl_module))

    def _contract(self, module: LightningModule) -> FlowContract:
        return getattr(module, "FLOW", FlowContract({})) if self.contract is None else self.contract

    def _judge(self, trainer: Trainer, contract: FlowContract) -> None:
        assert self.matrix is not None
        self.violations = contract.violations(self.matrix, partial=True)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                _log(logger, self.matrix, self.violations, self.batches - 1)
        ranks = over_ranks(self.violations)
        found = list({(v.loss, v.part, v.kind): v for v in reversed(ranks)}.values())[
            ::-1
        ]  # each once, as the first says
        if self.on_violation == "raise":
            raise_for(found, strict=contract.strict)
        elif found and self.on_violation == "warn":
            self.tell(found)

    def tell(self, found: Sequence[Violation]) -> None:
        """Warn of what was found. A subclass may say it in other words."""
        warnings.warn("\n".join(v.text for v in found), stacklevel=3)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.close()


@dataclass
class _Report:
    """One backward: its loss, its name (or None while it is unknown), and the norms of what arrived."""

    loss: Tensor
    name: str | None
    norms: dict[int, list[Tensor]] = field(default_factory=dict)
    crossings: dict[str, list[Tensor]] = field(default_factory=dict)
    fallback: bool = False


class _FlowRun:
    """One audited batch: the audit, the hooks, and the losses whose backward ran."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.automatic = module.automatic_optimization
        self.reports: list[_Report] = []
        self.current: _Report | None = None
        self.audit = audit(groups_of(module), boundaries=boundaries_of(module))
        self.audit.__enter__()
        self.audit.on_crossing(self._watch_crossing)
        self.handles = [register_optimizer_step_pre_hook(self._on_step)]
        for tensor in {id(t): t for part in self.audit.parts.values() for t in part}.values():
            if tensor.is_floating_point() or tensor.is_complex():
                self.handles.append(self._watch_parameter(tensor))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.audit.__exit__()

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
        self.current = _Report(loss, name, fallback=name is None)

    def end(self) -> None:
        """A backward has ended: the gradients that arrived are those of its loss."""
        if self.current is not None:
            self.reports.append(self.current)
            self.current = None

    def _on_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        known = [getattr(o, "optimizer", o) for o in self.trainer.optimizers]
        index = next((i for i, o in enumerate(known) if o is optimizer), None)
        if index is not None and not self.automatic:
            for report in self.reports:
                report.name = report.name or f"optimizer_{index}"

    def matrix(self, declared: Sequence[str]) -> FlowMatrix:
        """The matrix of all losses of the batch, under their final names."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for order, report in enumerate(r for r in self.reports if r.name is None):
            report.name = "loss" if self.automatic else f"loss_{order}"
        unnamed = list(dict.fromkeys(r.name for r in self.reports if r.fallback))
        rename = dict(zip(unnamed, declared, strict=True)) if len(unnamed) == len(declared) else {}
        for report in self.reports:
            norms = {key: _combined(got) / scale for key, got in report.norms.items()}
            crossings = {name: [float(n) / scale for n in got] for name, got in report.crossings.items()}
            name = rename.get(report.name, report.name) if report.fallback else report.name
            self.audit.record(str(name), report.loss, norms, crossings)
        return self.audit.matrix()


def _combined(norms: Sequence[Tensor]) -> float:
    """The norm of a gradient that arrived in several pieces (a reentrant checkpoint), taken as orthogonal."""
    return float(norms[0]) if len(norms) == 1 else float(torch.stack(list(norms)).norm())


def _log(logger: Any, matrix: FlowMatrix, violations: Sequence[Violation], step: int) -> None:
    """Norms and leak shares as scalars; in TensorBoard also the matrix as a picture and the cuts as text."""
    scalars = {f"flow/{loss}/{part}": cell.norm for (loss, part), cell in matrix.items()}
    leaks = {(v.loss, v.part) for v in violations if v.kind == "leak"}
    scalars |= {f"flow/{loss}/{part}/leak_share": matrix.share(loss, part) for loss, part in leaks}
    logger.log_metrics(scalars, step=step)
    writer: Any = getattr(logger, "experiment", None)
    if hasattr(writer, "add_text"):
        writer.add_text("flow/matrix", f"```\n{matrix.text([(v.loss, v.part) for v in violations])}\n```", step)
    if hasattr(writer, "add_figure") and find_spec("matplotlib") is not None:
        writer.add_figure("flow/matrix", matrix_figure(matrix), step)
