"""All that we use of Lightning beyond what it makes public: nothing private of it stands in any other file.

Tried with Lightning 2.6. Where a new version breaks one of these, conf_tests/test_private.py says which, and what no
longer works.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.optimization.manual import ManualResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward")
STEP_HOOKS += ("on_before_zero_grad", "on_before_optimizer_step")


def batch_number(trainer: Trainer) -> int:
    """How many batches were trained before this one, over all epochs: ``total_batch_idx`` of the loop inside."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def ask_no_rank_for_sigterm(trainer: Trainer) -> None:
    """Let no batch begin with a question to all ranks: ``_broadcast_sigterm_tensor`` of the loop, from 2.6 on."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def rest_idle_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Let each batch pass over the hooks that nobody has written, with what surrounds their call.

    One that is None is not called: ``call.py``. A callback that joins later keeps all of its hooks.
    """
    for name in STEP_HOOKS:
        for owner, base in (*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)):  # pyright: ignore
            if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
                setattr(owner, name, None)
    callbacks: Any = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for each in callbacks:
        if type(each) is ModelCheckpoint and each._every_n_train_steps < 1 and each._train_time_interval is None:
            vars(each)["on_train_batch_end"] = None  # it saves after evaluations alone


def shorten_batches(trainer: Trainer) -> None:
    """Let each plain batch go through :class:`PlainEpoch`: ``trainer.py`` sets its loop in the same way."""
    given = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = PlainEpoch(trainer, given.min_steps, given.max_steps)


def plain_epoch(module: LightningModule) -> PlainEpoch | None:
    """The epoch that is running, where its batches are plain: beside the hooks, a backward is PyTorch's own there."""
    epoch = getattr(getattr(module._trainer, "fit_loop", None), "epoch_loop", None)
    return epoch if type(epoch) is PlainEpoch and epoch.is_plain else None


class _Results(_ResultCollection):
    """What was logged, and whether anything was in this batch."""

    fresh = False

    def update_metrics(self, *args: Any) -> None:
        self.fresh = True
        super().update_metrics(*args)  # pyright: ignore[reportAttributeAccessIssue]


class PlainEpoch(_TrainingEpochLoop):
    """Lightning's epoch, in which a plain batch skips all that has nothing to do there: 8 % of a small GAN's step.

    Plain is a batch on one device, without a scaler or a scheduler, from a loader that knows its length. Hooks and
    counters go in the order of ``_TrainingEpochLoop`` and the two loops below it, to which all else is left: other
    batches, the first of a resumed fit, and the end of one after which more is due than the next. Whether batches are
    plain is asked as an epoch begins; and not where the Trainer clips, accumulates or profiles, evaluates by epochs or
    by the clock, or the module has a backward or an optimiser's step of its own. A callback that joins within an epoch
    is called from the next batch on; a hook that is replaced on one, from the next epoch on.
    """

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._results = _Results(training=True)
        self.is_plain = False
        self._counts = False  # the optimiser steps of now
        self._counter: list[Any] = []  # of them; no attribute, or it would be in checkpoints twice
        self._next: Any = None  # gives the next batch
        self._taken: Any = None  # the optimisers whose steps are made here
        self._hooks: dict[str, list[Callable[..., Any]]] = {}
        self._known: list[Any] = []  # the callbacks that those are of

    def run(self, data_fetcher: Any) -> None:
        try:
            super().run(data_fetcher)
        finally:
            self.is_plain = False
            self._next = None  # or a loader's processes would outlive the fit
            for optimizer in self._taken or ():
                vars(optimizer).pop("step", None)
            self._taken = None

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer, module = self.trainer, self.trainer.lightning_module
        self.is_plain = _computes_plainly(trainer, module) and _feeds_plainly(trainer, data_fetcher)
        if not self.is_plain:
            return
        self._hooks, self._known, self._counts = _hooks_of(trainer), list(cast(Any, trainer).callbacks), False
        self._next = data_fetcher.combined_loader._iterator.iterators[0].__next__
        self._module: Any = module
        self._moves = _moves_batches(trainer)
        self._takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        automatic = self.automatic_optimization.optim_progress.optimizer.step
        by_hand = self.manual_optimization.optim_step_progress
        self._counter = [automatic if module.automatic_optimization else by_hand]

    def _take_steps(self) -> None:
        """Make the steps of manual optimisation, in place of Lightning."""
        self._taken = self.trainer.strategy._lightning_optimizers
        if not self.trainer.lightning_module.automatic_optimization:
            for optimizer in self._taken:
                optimizer.step = partial(self._step, optimizer.optimizer)  # pyright: ignore[reportAttributeAccessIssue]

    def call(self, name: str, *args: Any) -> Any:
        """Call one of ``STEP_HOOKS`` of all callbacks, then of the module, as ``call.py`` does; return its answer."""
        hooks, module = self._hooks[name], self._module
        own = getattr(module, name)
        if not hooks and own is None:
            return None
        context = vars(module)
        before, context["_current_fx_name"] = context["_current_fx_name"], name
        for hook in hooks:
            hook(self.trainer, module, *args)
        answer = None if own is None else own(*args)
        context["_current_fx_name"] = before
        return answer

    def _step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """A step; it is counted where it is the training step's, as ``LightningOptimizer.step`` does it."""

        def with_hooks() -> Any:
            answer = None if closure is None else closure()
            self.call("on_before_optimizer_step", optimizer)
            return answer

        counts = self._counts
        if counts:
            self._steps.increment_ready()
        answer = optimizer.step(closure=with_hooks, **options)
        if counts:
            self._steps.increment_completed()
        return answer

    @property
    def _steps(self) -> Any:
        """The counter of optimiser steps."""
        return self._counter[0]

    def _train(self, *args: Any) -> Any:
        """The module's ``training_step``; returns what the hooks at the batch's end are told of it."""
        module, strategy = self.trainer.lightning_module, self.trainer.strategy

        def answer() -> Any:
            before, vars(module)["_current_fx_name"] = module._current_fx_name, "training_step"
            found = strategy.training_step(*args)
            vars(module)["_current_fx_name"] = before
            return found

        if not module.automatic_optimization:
            found = None
            with suppress(StopIteration):  # a loader of the module's own has ended: the batch is over, not the epoch
                found = answer()
            return {} if found is None else ManualResult.from_training_step_output(found).asdict()
        optimizer = self.trainer.optimizers[0]
        closure = Closure(
            lambda: ClosureResult.from_training_step_output(answer()), self._backward, partial(self._zero, optimizer)
        )
        self._step(optimizer, closure)
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _backward(self, loss: Tensor) -> None:
        self.call("on_before_backward", loss)
        loss.backward()
        self.call("on_after_backward")

    def _zero(self, optimizer: Optimizer) -> None:
        progress = self.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self.call("on_before_zero_grad", optimizer)
        progress.increment_started()
        optimizer.zero_grad()
        progress.increment_completed()

    @property
    def global_step(self) -> int:
        """Asked for by many, many times a batch."""
        return self._steps.total.completed if self.is_plain else super().global_step

    @property
    def done(self) -> bool:
        return (not self.is_plain or self._is_more_due()) and super().done

    def _is_more_due(self) -> bool:
        """Whether anything may follow the last batch but the next."""
        trainer, progress = cast(Any, self.trainer), self.batch_progress
        return (
            trainer.should_stop
            or trainer.received_sigterm
            or progress.is_last_batch
            or progress.current.ready == trainer.fit_loop.max_batches
            or progress.total.ready % trainer.val_check_batch == 0
            or -1 < self.max_steps <= self._steps.total.completed
        )

    def advance(self, data_fetcher: Any) -> None:
        if self._restarting or not self.is_plain:
            super().advance(data_fetcher)
            return
        trainer, progress, results = cast(Any, self.trainer), self.batch_progress, self._results
        connector, module = trainer._logger_connector, trainer.lightning_module
        total, current = cast(Any, progress.total), cast(Any, progress.current)
        batch = self._next()
        data_fetcher.fetched += 1
        data_fetcher.done = progress.is_last_batch = data_fetcher.fetched >= data_fetcher.length
        if self._moves:
            batch = trainer.strategy.batch_to_device(module._on_before_batch_transfer(batch))
        elif type(batch) in (list, dict):
            batch = copy.copy(batch)  # the loader may keep its own
        if self._known != trainer.callbacks:
            self._hooks, self._known = _hooks_of(trainer), list(trainer.callbacks)
        batch_idx = current.ready
        total.ready += 1
        current.ready += 1
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx, results.fresh = batch, None, None, False
        outputs, is_over = None, False
        if batch is None:
            self._warning_cache.warn("the loader gave None in place of a batch: it is passed over")
        elif self.call("on_train_batch_start", batch, batch_idx) == -1:
            progress.is_last_batch = is_over = True
        else:
            total.started += 1
            current.started += 1
            if self._taken is not trainer.strategy._lightning_optimizers:
                self._take_steps()
            self._counts = True
            outputs = self._train(*((batch, batch_idx) if self._takes_index else (batch,)))
            self._counts = False
        total.processed += 1
        current.processed += 1
        if is_over:
            raise StopIteration
        self.call("on_train_batch_end", outputs, batch, batch_idx)
        if results.fresh:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        total.completed += 1
        current.completed += 1
        every = trainer.log_every_n_steps
        if trainer.should_stop or (every and (self._batches_that_stepped + 1) % every == 0):
            connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: Any) -> None:
        if self.is_plain and not self._is_more_due():
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)


def _computes_plainly(trainer: Any, module: LightningModule) -> bool:
    """Whether Lightning would add nothing to a backward and a step but their hooks.

    What it does there is in ``backward`` and ``optimizer_step`` of ``Strategy`` and ``Precision``.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    own = ("backward", "manual_backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
    return (
        type(strategy) is SingleDeviceStrategy
        and (type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None))
        and not any(is_overridden(name, module) for name in own)
        and type(trainer.profiler) is PassThroughProfiler
        and trainer.accumulate_grad_batches == 1
        and trainer.gradient_clip_val is None
        and not any("step" in vars(optimizer) for optimizer in strategy._lightning_optimizers)
        and not (module.automatic_optimization and trainer.lr_scheduler_configs)
        and not trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward
    )


def _feeds_plainly(trainer: Any, data_fetcher: Any) -> bool:
    """Whether a batch is what one loader gives, and an evaluation due by its number."""
    loader = data_fetcher.combined_loader
    return (
        type(data_fetcher) is _PrefetchDataFetcher
        and data_fetcher.length is not None
        and loader.flattened[0] is loader.iterables
        and trainer.check_val_every_n_epoch is None
        and trainer._val_check_time_interval is None
    )


def _moves_batches(trainer: Any) -> bool:
    """Whether a batch is not trained on as and where the loader gives it."""
    hooks = trainer._data_connector._datahook_selector
    movers = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return not on_cpu or any(is_overridden(name, hooks.get_instance(name)) for name in movers)


def _hooks_of(trainer: Any) -> dict[str, list[Callable[..., Any]]]:
    """Those of ``STEP_HOOKS`` that the callbacks have."""
    found = {name: [getattr(callback, name) for callback in trainer.callbacks] for name in STEP_HOOKS}
    return {name: [hook for hook in hooks if hook is not None] for name, hooks in found.items()}


def loader_states(checkpoint: dict[str, Any]) -> list[Any]:
    """The states of the training's loaders in a checkpoint: ``loops``, as the fit loop lays it out."""
    return checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])


def set_loader_states(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Let the training's loaders go on from these: ``loops``, as the fit loop reads it."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def raised_in_restore(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint: its functions that do so have ``restore`` in their names."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "restore" in frame.f_code.co_name]
    return any(frame.f_globals["__name__"].startswith("lightning.") for frame in frames)


def has_begun(logger: WandbLogger) -> bool:
    """Whether a run at Weights & Biases was begun; to ask for ``experiment`` would begin one: ``_experiment``."""
    return logger._experiment is not None
