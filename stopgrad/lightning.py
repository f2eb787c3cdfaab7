"""Lightning callbacks: audits of flow, frozen parts, kept graphs and ranks. Off, they install nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from stopgrad import measure
from stopgrad.boundary import Boundary, Stops
from stopgrad.contract import FlowContract, Violation, raise_for
from stopgrad.flow import audit
from stopgrad.freeze import Drift, FreezeWatch, FrozenDrift, frozen_modules, train_eval_gap
from stopgrad.matrix import FlowMatrix
from stopgrad.parts import Modules
from stopgrad.pictures import matrix_figure
from stopgrad.ranks import Difference, RankDivergence, first_difference
from stopgrad.retention import GraphRetained, Kept, growth, kept_graphs
from stopgrad.sites import recorder
from stopgrad.strategy import nearest

OPENING = 20  # batches in which every loss of a contract is awaited
_V = TypeVar("_V")
_name: ContextVar[str | None] = ContextVar("stopgrad_loss_name", default=None)
_skipped: ContextVar[bool] = ContextVar("stopgrad_unaudited", default=False)


@contextlib.contextmanager
def loss_name(name: str) -> Iterator[None]:
    """Name the loss whose backward runs inside::

    with loss_name("d_loss"):
        self.manual_backward(d_loss)
    """
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


@contextlib.contextmanager
def unaudited() -> Iterator[None]:
    """Leave what runs inside out of the audit::

        with unaudited():
            self.manual_backward(self.policy_loss(batch) + self.value_loss(batch))

    For what repeats, in the same batch, losses that have been reported one by one: their sum takes one backward, from
    which nobody could tell whose gradient arrived where; and it is not traced a second time.
    """
    following = recorder()
    token = _skipped.set(True)
    try:
        with following.pause() if following else contextlib.nullcontext():
            yield
    finally:
        _skipped.reset(token)


def loss_being_named() -> str | None:
    """The name that :func:`loss_name` gives here, or None."""
    return _name.get()


def groups_of(module: LightningModule) -> Modules:
    """What the module's ``parameter_groups()`` returns, or else the module: its named children are the groups."""
    declared = getattr(module, "parameter_groups", None)
    return declared() if callable(declared) else module  # pyright: ignore[reportReturnType]


def boundaries_of(module: LightningModule) -> list[str]:
    """Names of the boundaries among the module's attributes, such as those of its ``stop``."""
    names = []
    for value in vars(module).values():
        names += [value.name] if isinstance(value, Boundary) else value.boundaries if isinstance(value, Stops) else []
    return list(dict.fromkeys(names))


def _over_ranks(found: Sequence[_V]) -> list[_V]:
    """The findings of all ranks, each once: all ranks must raise, or none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, list(found))
        return list(dict.fromkeys(v for rank in gathered for v in rank))
    return list(found)


class _Audit(Callback):
    """What the three audits share: which batches are audited, and what happens on a violation."""

    def __init__(self, every_n_steps: int | None, on_violation: str) -> None:
        if on_violation not in ("raise", "warn"):
            raise ValueError(f"on_violation={on_violation}: choose one of raise, warn")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps}: choose a number from 1, or None for the first batch alone"
            )
        self.every_n_steps = every_n_steps
        self.on_violation = on_violation
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class FlowAudit(_Audit):
    """Audit the gradient flow of a training at its first batch, and then every n batches.

    A loss that the contract names may come later than the first batch, such as a generator's that steps every third
    time: the first audit goes on until it has seen every one, for 20 batches at most, and judges them together.

    The gradient is measured by hooks in the real backward: no extra pass, and what DDP later averages is not in it.
    Losses are named by :func:`loss_name`. An unnamed one takes the name of the optimiser that steps next
    (``optimizer_0``; with none, ``loss_0`` and so on by order; under automatic optimisation ``loss``), and where the
    contract has as many losses as there are such names, the contract's names, in order.

    Args:
        every_n_steps: audit every n-th batch; None for the beginning of each fit alone.
        on_violation: ``raise`` an error that names loss, part, path and cut, on all ranks; or ``warn`` with it.
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
        if self._run is not None and not _skipped.get():
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
        ranks = _over_ranks(self.violations)
        found = list({(v.loss, v.part, v.kind): v for v in reversed(ranks)}.values())[
            ::-1
        ]  # each once, as the first says
        if self.on_violation == "raise":
            raise_for(found, strict=contract.strict)
        elif found:
            warnings.warn("\n".join(v.text for v in found), stacklevel=2)

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
        name = _name.get()
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
        writer.add_text("flow/matrix", f"```\n{matrix}\n```", step)
    if hasattr(writer, "add_figure") and find_spec("matplotlib") is not None:
        writer.add_figure("flow/matrix", matrix_figure(matrix), step)


class FreezeAudit(_Audit):
    """Tell whether anything that is declared frozen moved: parameters, buffers, optimiser state.

    The first batch also shows whether the frozen modules' features are the same in train mode and in eval mode.

    Args:
        parts: groups, or dotted names of submodules; by default the contract's ``frozen`` parts, and without any the
            outermost modules of which no parameter requires grad.
        every_n_steps: check after every n-th batch; None for the end of each epoch alone.
        on_violation: ``raise`` :class:`FrozenDrift`, on all ranks, or ``warn``.

    Attributes:
        drifts: what has moved by the last check.
        gaps: by part, the largest difference between features in train mode and in eval mode at the first batch.
    """

    def __init__(
        self, parts: Sequence[str] | None = None, every_n_steps: int | None = None, on_violation: str = "raise"
    ) -> None:
        super().__init__(every_n_steps, on_violation)
        self.parts = parts
        self.drifts: list[Drift] = []
        self.gaps: dict[str, float] = {}
        self._watch: FreezeWatch | None = None
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[str, tuple[nn.Module, Any, Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = self._frozen(pl_module)
        if not frozen:
            raise ValueError("FreezeAudit: nothing is frozen; name the parts, FreezeAudit(parts=[...])")
        self._watch = FreezeWatch(frozen, [getattr(o, "optimizer", o) for o in trainer.optimizers])
        for name, part in frozen.items():
            if isinstance(part, nn.Module):
                keep = partial(self._keep_inputs, name)
                self._handles.append(part.register_forward_pre_hook(keep, with_kwargs=True))

    def _frozen(self, module: LightningModule) -> dict[str, Any]:
        contract = getattr(module, "FLOW", None)
        names = self.parts if self.parts is not None else getattr(contract, "frozen", ())
        if not names:
            return dict(frozen_modules(module))
        groups = groups_of(module)
        named = dict(module.named_modules()) | (dict(groups) if isinstance(groups, Mapping) else {})
        for name in names:
            if name not in named:
                raise ValueError(f"FreezeAudit: no part {name!r}{nearest(name, named)}")
        return {name: named[name] for name in names}

    def _keep_inputs(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs.setdefault(name, (module, args, kwargs))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, (module, args, kwargs) in self._inputs.items():
            self.gaps[name] = train_eval_gap(module, *args, **kwargs)
        self._inputs.clear()
        if self.every_n_steps and self.batches % self.every_n_steps == 0:
            self._check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def _check(self) -> None:
        if self._watch is None:
            return
        self.drifts = self._watch.drifts()
        found = _over_ranks(self.drifts)
        if found and self.on_violation == "raise":
            raise FrozenDrift(found)
        if found:
            warnings.warn("\n".join(map(str, found)), stacklevel=2)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.on_exception(trainer, pl_module, KeyboardInterrupt())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for handle in self._handles:
            handle.remove()
        if self._watch is not None:
            self._watch.close()
            self._watch = None


class RetentionAudit(_Audit):
    """Tell which kept tensors hold a graph: in the module's attributes, the logged values and the callbacks.

    A place whose graph has grown between two checks is a violation: ``total_loss += loss``, outputs kept in a list.

    Args:
        every_n_steps: check after every n-th batch.
        on_violation: ``raise`` :class:`GraphRetained`, on all ranks, or ``warn``.

    Attributes:
        kept: what the last check found, growing or not.
    """

    def __init__(self, every_n_steps: int = 50, on_violation: str = "raise") -> None:
        super().__init__(every_n_steps, on_violation)
        self.kept: list[Kept] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self.every_n_steps is None or self.batches % self.every_n_steps:
            return
        roots = {
            "module": pl_module,
            "logged_metrics": trainer.logged_metrics,
            "callback_metrics": trainer.callback_metrics,
        }
        roots |= {type(c).__name__: c for c in trainer.callbacks}  # pyright: ignore[reportAttributeAccessIssue]
        before, self.kept = self.kept, kept_graphs(roots, exclude=pl_module.parameters())
        found = _over_ranks(growth(before, self.kept) if before is not None else [])
        if found and self.on_violation == "raise":
            raise GraphRetained("\n".join(found))
        if found:
            warnings.warn("\n".join(found), stacklevel=2)


class RankAudit(_Audit):
    """Compare parameters, buffers and optimiser state over the ranks of a distributed run, bit for bit.

    Before the first batch, after it, after every n-th batch, and at the end. The error names the first tensor that
    differs, and between which steps it began to; with ``every_n_steps=1``, the very step. One process: nothing is done.

    Args:
        every_n_steps: compare after every n-th batch; None for the first batch and the end alone.
        on_violation: ``raise`` :class:`~stopgrad.ranks.RankDivergence`, on all ranks, or ``warn``.

    Attributes:
        difference: what the last comparison found, or None.
    """

    def __init__(self, every_n_steps: int | None = 500, on_violation: str = "raise") -> None:
        super().__init__(every_n_steps, on_violation)
        self.difference: Difference | None = None
        self._equal_after: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = True
        self._compare(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self._first or (self.every_n_steps and self.batches % self.every_n_steps == 0):
            self._first = False
            self._compare(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._equal_after != self.batches and self.difference is None:
            self._compare(trainer, pl_module)

    def _compare(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        optimizers = [getattr(o, "optimizer", o) for o in trainer.optimizers]
        self.difference = first_difference(module, optimizers)
        if self.difference is None:
            self._equal_after = self.batches
            return
        since = "before the first batch" if self._equal_after is None else f"after batch {self.batches}"
        if self._equal_after is not None:
            since += f", and did not after batch {self._equal_after}"
        text = f"{self.difference} {since}"
        if self.on_violation == "raise":
            raise RankDivergence(text)
        warnings.warn(text, stacklevel=2)
