"""``FlowAudit``: where the gradient of each loss of a training goes, measured in its own backward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from stopgrad.audits.steps import StepWatch
from stopgrad.cuts.strategies import nearest
from stopgrad.flow.contract import FlowContract, Violation, raise_for
from stopgrad.flow.drawing import flow_figure, flow_sentences
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.pictures import matrix_figure
from stopgrad.flow.routes import Record, merged
from stopgrad.flow.steps import Finding as OptimizerFinding
from stopgrad.lightning.audit import Audit, over_ranks, parts_in, split_groups
from stopgrad.lightning.flow_run import FlowRun, plain_optimizers
from stopgrad.lightning.names import is_unaudited
from stopgrad.watch.findings import Finding
from stopgrad.watch.report import Report
from stopgrad.watch.session import Session

OPENING = 20  # batches in which every loss of a contract is awaited


class FlowAudit(Audit):
    """Audit the gradient flow of a training at its first batch, and then every n batches; or watch it.

    Without a contract it watches each fit as ``python -m stopgrad run`` does, and prints at its end the matrix and what
    it found, with losses by the variables in the calling lines. With one it audits, as follows.

    A loss that the contract names may come later than the first batch, such as a generator's that steps every third
    time: the first audit goes on until it has seen every one, for 20 batches at most, and judges them together. One
    that has not come by then is a violation, and so is one that a shorter run did not show, if there were losses that
    the contract does not name; else a warning.

    In fp16 norms are those of the unscaled gradient. The scaler begins with a scale that is too large, under which
    gradients overflow: the first audit goes on over these batches too.

    The gradient is measured by hooks in the real backward: no extra pass, and what DDP later averages is not in it.
    Losses are named by :func:`loss_name`. An unnamed one takes the name of the optimiser that steps next
    (``optimizer_0``; with none, ``loss_0`` and so on by order; under automatic optimisation ``loss``), and where the
    contract has as many losses as there are such names, the contract's names, in order.

    It also warns of parameters that get a gradient and that no optimiser holds, that one lists twice, and, at the end,
    that require grad, are held, and never moved.

    Args:
        every_n_steps: audit every n-th batch; None for the beginning of each fit alone.
        on_violation: ``raise`` an error that names loss, part, path and cut, on all ranks; ``warn`` with it; or
            ``record``: say nothing, and keep it in ``violations``, ``findings`` and ``report``.
        contract: what to check, a :class:`~stopgrad.FlowContract` or its rows; by default the module's ``FLOW``, if it
            has one.
        watch: watch the fit, or not, whether there is a contract or not.

    Attributes:
        matrix: the last :class:`~stopgrad.FlowMatrix`, or None; without a contract that of ``report``.
        report: what the watch saw of the last fit, whatever ended it; None without one, and until the end.
        violations: what the last audit found.
        record: what a picture of the first audit shows, for :func:`stopgrad.drawing.flow_svg`; None without one.
        findings: those of ``report``; without a watch, what was found about the optimisers.

    Raises:
        TypeError: ``contract`` is neither a contract nor rows.
        ValueError: a row of it, ``every_n_steps`` or ``on_violation`` is wrong.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        on_violation: str = "raise",
        contract: FlowContract | Mapping[str, Mapping[str, str]] | None = None,
        watch: bool | None = None,
    ) -> None:
        super().__init__(every_n_steps, on_violation)
        self.contract = None if contract is None else FlowContract.of(contract)
        self.matrix: FlowMatrix | None = None
        self.violations: list[Violation] = []
        self.findings: list[Finding | OptimizerFinding] = []
        self.watch = watch
        self.report: Report | None = None
        self.record: Record | None = None
        self._session: Session | None = None
        self._said: set[tuple[str, tuple[str, ...]]] = set()  # of the optimisers, in this fit
        self._is_bare = False  # there is no contract
        self._run: FlowRun | None = None
        self._steps: StepWatch | None = None
        self._opening = OPENING

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, before the optimisers are made."""
        if stage == "fit":
            self.report = None
            contract = self._contract(pl_module)
            self._is_bare = not (contract or contract.frozen)
            if self.watch or (self.watch is None and self._is_bare):
                declared = split_groups(pl_module)[1] is not None
                parts = parts_in(pl_module, contract).tensors if declared else None
                self._session = Session(type(pl_module).__name__, pl_module, self.every_n_steps or 100, parts)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._opening, self._is_shown, self._overflowed = OPENING, False, False
        self.matrix = self.record = None
        self.findings, self._said = [], set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is None:  # its rules tell of the optimisers too
            self._steps = StepWatch(pl_module, plain_optimizers(trainer)).__enter__()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._session is not None and self._is_bare:
            return
        if self._opening or (self.every_n_steps and self.batches % self.every_n_steps == 0):
            self._run = FlowRun(trainer, pl_module, self._contract(pl_module), draw=bool(self._opening))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._run is not None and not is_unaudited():
            self._run.begin(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            self._run.end()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._run is not None:  # in fp16 also where the scaler then leaves the step out
            self._run.on_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self._run is None:
            return
        contract = self._contract(pl_module)
        try:
            seen, overflowed = self._run.matrix(list(contract)), self._run.overflowed
            if self._steps is not None:
                self._run.tell(self._steps)
            if (record := self._run.record()) is not None:
                self.record = merged(None if self._overflowed else self.record, record)
                self._overflowed = overflowed
        finally:
            self._close()
        self.matrix = seen if self.matrix is None else self.matrix.updated(seen)
        awaited = self._awaited(contract) if self._opening else []
        if self._opening:
            self._opening = self._opening - 1 if awaited or overflowed else 0
        if not self._opening:
            self._tell(trainer, contract)
            self._judge(trainer, contract, awaited)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        contract = self._contract(pl_module)
        if self._steps is not None:
            self._tell(trainer, contract, over=True)
        if self.matrix is None:
            return
        if self._opening:
            self._opening = 0
            awaited = self._awaited(contract)
            unknown = [name for name in self.matrix.losses if not any(fnmatchcase(name, known) for known in contract)]
            self._judge(trainer, contract, awaited if unknown else [])
            if awaited and not unknown and trainer.is_global_zero and self.on_violation != "record":
                text = "FlowAudit: the run ended before these losses of the contract came, so they are not checked"
                warnings.warn(f"{text}: {', '.join(awaited)}", stacklevel=2)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer)

    def _report(self, trainer: Trainer, error: BaseException | None = None) -> None:
        """End the watch, and tell what it saw."""
        if self._session is None:
            return
        session, self._session = self._session, None
        self.report = session.end(error)
        self.findings = list(self.report.findings)
        if self.matrix is None:
            self.matrix = self.report.matrix
        if not trainer.is_global_zero:
            return
        if session.is_outer and self.on_violation != "record":
            print(f"\n{self.report}", flush=True)
        for logger in trainer.loggers:
            _log_report(logger, self.report, self.batches)

    def _contract(self, module: LightningModule) -> FlowContract:
        return FlowContract.of(getattr(module, "FLOW", {})) if self.contract is None else self.contract

    def _awaited(self, contract: FlowContract) -> list[str]:
        """The losses that the contract names and that have not come yet."""
        seen = self.matrix.losses if self.matrix is not None else ()
        return [name for name in contract if "*" not in name and name not in seen]

    def _judge(self, trainer: Trainer, contract: FlowContract, missing: Sequence[str]) -> None:
        assert self.matrix is not None
        seen = self.matrix.losses
        self.violations = [Violation("missing", name, "", _missing(name, seen, self.batches)) for name in missing]
        self.violations += contract.violations(self.matrix, partial=True)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                _log(logger, self.matrix, self.violations, self.batches - 1)
                if self.record is not None and not self._is_shown:
                    _log_picture(logger, self.record, self.batches - 1)
            self._is_shown = True
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

    def _tell(self, trainer: Trainer, contract: FlowContract, *, over: bool = False) -> None:
        """Warn of what is found about the optimisers, each once; not of what the contract calls blocked or frozen."""
        if self._steps is None or self.matrix is None:
            return
        unions = self.matrix.facts.unions
        wanted = contract.wanted(self.matrix.losses, self.matrix.parts, partial=True, unions=unions)
        barred = dict.fromkeys(part for (_, part), state in wanted.items() if state == "blocked")

        def spare() -> Iterator[Tensor]:  # asked only where something is found
            parts = parts_in(trainer.lightning_module, contract)
            for name in barred:
                yield from parts.of(name)

        for finding in self._steps.findings(spare=spare(), over=over):
            if (finding.name, finding.evidence) not in self._said:
                self._said.add((finding.name, finding.evidence))
                self.findings.append(finding)
                if trainer.is_global_zero and self.on_violation != "record":
                    self.tell_finding(finding)

    def tell_finding(self, finding: OptimizerFinding) -> None:
        """Warn of a finding about the optimisers. A subclass may say it in other words."""
        warnings.warn(str(finding), stacklevel=3)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit", exception)

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, error: BaseException | None = None
    ) -> None:
        try:
            self._off()
        finally:
            self._off()  # what an exception (Ctrl-C) kept from it
            self._report(trainer, error)

    def _off(self) -> None:
        self._close()
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None


def _missing(name: str, seen: Sequence[str], batches: int) -> str:
    what = f"the contract names loss {name!r}, which did not come in {batches} batches"
    there = f"there is {', '.join(seen) or 'none'}{nearest(name, seen)}"
    return f"{what}; {there}; name a loss by loss_name({name!r}) around its backward"


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


def _log_picture(logger: Any, record: Record, step: int) -> None:
    """The flow picture, in TensorBoard, and in words."""
    writer: Any = getattr(logger, "experiment", None)
    if hasattr(writer, "add_text"):
        writer.add_text("flow/picture", "\n".join(f"- {each}" for each in flow_sentences(record)), step)
    if hasattr(writer, "add_figure") and find_spec("matplotlib") is not None:
        writer.add_figure("flow/picture", flow_figure(record), step)


def _log_report(logger: Any, report: Report, step: int) -> None:
    """The report as text, where the logger takes some, and the norms of its matrix."""
    if report.matrix is not None:
        _log(logger, report.matrix, [], step)
    writer: Any = getattr(logger, "experiment", None)
    if hasattr(writer, "add_text"):
        writer.add_text("flow/report", f"```\n{report}\n```", step)
    elif hasattr(logger, "log_text"):  # Weights & Biases
        logger.log_text("flow/report", columns=["report"], data=[[str(report)]], step=step)
