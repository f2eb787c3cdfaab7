"""A training through ``PlainEpoch`` is Lightning's own, hook by hook, counter by counter and bit by bit."""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stopgrad.lightning.lightning_internals import STEP_HOOKS, plain_epoch, rest_idle_hooks, shorten_batches
from stopgrad.lightning.manual import backward, counted, raw

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore:.*LeafSpec"
)  # Lightning's, of so small a training
HOOKS = (*STEP_HOOKS, "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end")
HOOKS += ("on_validation_start", "on_validation_batch_end", "on_validation_end", "on_exception")


class Two(L.LightningModule):
    """Two optimisers, of which the first is counted; it notes each hook with all counters, the context and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
        self.events: list[Any] = []
        self.plain = 0

    def note(self, *what: Any) -> None:
        loops = {k: v for k, v in self.trainer.fit_loop.state_dict().items() if k != "combined_loader"}
        counters = (self.trainer.global_step, str(loops), vars(self)["_current_fx_name"])
        weights = torch.cat([p.detach().flatten() for p in self.parameters()]).tolist()
        self.events.append((*what, counters, weights, self.trainer.should_stop))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.first.parameters(), 0.1), torch.optim.Adam(self.second.parameters(), 0.1)

    def losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        x = batch
        while not isinstance(x, Tensor):
            x = x["a"] if isinstance(x, dict) else x[0]
        return self.second(self.first(x).detach()).square().mean(), self.second(self.first(x)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.plain += plain_epoch(self) is not None
        self.note("training_step", batch_idx)
        values = []
        for k, optimizer, name in ((0, raw(self, 1), "first"), (1, counted(self), "second")):
            values.append(loss := self.losses(batch)[k])
            optimizer.zero_grad()
            backward(self, loss, name)
            optimizer.step()
        first, second = values
        if batch_idx % 2:
            self.log("loss/first", first.detach(), prog_bar=True)
        self.log("mean", second.detach(), on_step=True, on_epoch=True)
        return self.answer(second)

    def answer(self, loss: Tensor) -> Any:
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.second(self.first(batch[0])).sum())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.note("own start", batch_idx)


class Notes(Callback):
    """Every hook of a training, with its arguments but trainer and module."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        pl_module.log("seen", float(trainer.global_step))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        pl_module.log("value", loss.detach())


def noting(name: str) -> Callable[..., None]:
    own = vars(Notes).get(name)

    def hook(self: Any, trainer: Any, pl_module: Any, *args: Any) -> None:
        pl_module.note(name, [str(arg) for arg in args])
        if own is not None:
            own(self, trainer, pl_module, *args)

    return hook


for each in HOOKS:
    setattr(Notes, each, noting(each))


class Written(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.written.append((step, metrics))


def loader(**options: Any) -> DataLoader[Any]:
    data = torch.linspace(-1, 1, 20).view(10, 2)
    return DataLoader(TensorDataset(data), batch_size=2, **options)


def trained(short: bool, kind: type[Two] = Two, data: Any = None, *more: Any, ckpt: Any = None, **options: Any) -> Any:
    """All that can be told of a training after it, and in how many of its batches the epoch was plain."""
    torch.manual_seed(0)
    module, logger = kind(), Written()
    given: dict[str, Any] = {"max_steps": 8, "max_epochs": -1, "val_check_interval": 3, "log_every_n_steps": 2}
    given |= {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "accelerator": "cpu"} | options
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [Notes(), *(make() for make in more)]
    quiet["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = L.Trainer(logger=logger, callbacks=callbacks, **(quiet | given))
    if short:
        rest_idle_hooks(trainer, module)
        shorten_batches(trainer)
    failed = None
    try:
        trainer.fit(module, loader() if data is None else data(), loader(), ckpt_path=ckpt)
    except (ZeroDivisionError, SIGTERMException, MisconfigurationException) as error:
        failed = type(error)
    metrics = {name: dict(getattr(trainer, f"{name}_metrics")) for name in ("callback", "logged", "progress_bar")}
    counters = {k: v for k, v in trainer.fit_loop.state_dict().items() if k != "combined_loader"}
    weights = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    steps = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return (module.events, logger.written, metrics, counters, weights, str(steps), failed), module.plain


def same(*args: Any, plain: int | None = None, **options: Any) -> Any:
    """Both ways are told to be one; ``plain``: in how many batches the shorter way was gone, some if None."""
    (ours, count), (theirs, none) = trained(True, *args, **options), trained(False, *args, **options)
    assert none == 0
    assert count > 0 if plain is None else count == plain
    for mine, lightnings in zip(ours, theirs, strict=True):
        assert mine == lightnings
    return ours


def test_over_epochs_and_evaluations():
    events, written, metrics, *_ = same(plain=8)
    names = [event[0] for event in events]
    assert names.count("training_step") == 8
    assert names.count("on_validation_start") == 2
    assert [step for step, values in written if "loss/first" in values] != []
    assert set(metrics["callback"]) >= {"loss/first", "mean", "mean_step", "seen", "value", "score"}


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 2},
        {"limit_train_batches": 0.4},
        {"val_check_interval": 1.0, "check_val_every_n_epoch": 1},
        {"val_check_interval": 0.4, "check_val_every_n_epoch": 1},
        {"limit_val_batches": 0},
        {"log_every_n_steps": 0},
        {"log_every_n_steps": 1, "precision": "bf16-mixed"},
        {"max_epochs": 2, "max_steps": -1},
        {"max_steps": 5},
        {"max_epochs": 3, "max_steps": 100, "min_steps": 4},
        {"precision": "64-true"},
        {"overfit_batches": 2},
    ],
    ids=str,
)
def test_settings(options):
    plain = 0 if options.keys() & {"check_val_every_n_epoch"} else 0 if options.get("precision") == "64-true" else None
    same(plain=plain, **options)


class Stops(Two):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainer.should_stop = self.trainer.global_step == 4


class Skips(Two):
    """Ends an epoch at its third batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class Fails(Two):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 4:
            raise ZeroDivisionError


class Terminated(Two):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 4:
            signal.raise_signal(signal.SIGTERM)


class Answers(Two):
    def answer(self, loss: Tensor) -> Any:
        return loss


class AnswersMore(Two):
    def answer(self, loss: Tensor) -> Any:
        return {"loss": loss, "more": 3}


class AnswersWrongly(Two):
    def answer(self, loss: Tensor) -> Any:
        return "loss"


class NoIndex(Two):
    def training_step(self, batch: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Two.training_step(self, batch, 1)


class Moves(Two):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2]


class StepsLate(Two):
    """A step after the training step is not counted."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        counted(self).step()


class Closes(Two):
    """Steps with a closure, and both optimisers through Lightning."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.plain += plain_epoch(self) is not None
        for k in (1, 0):
            optimizer = counted(self, k)

            def closure(optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = self.losses(batch)[1]
                backward(self, loss, "loss")
                return loss

            self.note("stepped", optimizer.step(closure).item())  # pyright: ignore[reportCallIssue, reportArgumentType, reportOptionalMemberAccess]


@pytest.mark.parametrize("kind", [Stops, Skips, Answers, AnswersMore, NoIndex, Moves, StepsLate, Closes])
def test_modules(kind):
    same(kind)
    same(kind, log_every_n_steps=3)


def test_that_end_with_an_error():
    assert same(Terminated)[-1] is SIGTERMException
    assert same(AnswersWrongly)[-1] is MisconfigurationException
    assert same(Fails)[-1] is ZeroDivisionError


class Fetches(Two):
    """Takes the batches by itself."""

    def training_step(self, dataloader_iter: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch, batch_idx, _ = next(dataloader_iter)
        return Two.training_step(self, batch, batch_idx)


class Automatic(Two):
    """A loss that Lightning takes the gradient of."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.plain += plain_epoch(self) is not None
        self.note("training_step", batch_idx)
        loss = self.losses(batch)[1]
        self.log("mean", loss.detach(), on_step=True, on_epoch=True, prog_bar=True)
        return self.answer(loss)

    def answer(self, loss: Tensor) -> Any:
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.note("own zero_grad")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.1)


class AutomaticMore(Automatic):
    def answer(self, loss: Tensor) -> Any:
        return {"loss": loss, "more": 3}


class AutomaticGap(Automatic):
    """Passes over every third batch."""

    def answer(self, loss: Tensor) -> Any:
        return None if self.global_step % 3 == 2 else loss


class AutomaticWrong(Automatic):
    def answer(self, loss: Tensor) -> Any:
        return {"more": loss}


class AutomaticIdle(Automatic):
    def configure_optimizers(self) -> Any:
        return None


class Lbfgs(Automatic):
    """An optimiser that calls its closure several times."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class AutomaticStops(Automatic, Stops):
    pass


class AutomaticFails(Automatic, Fails):
    pass


@pytest.mark.parametrize("kind", [Automatic, AutomaticMore, AutomaticGap, AutomaticIdle, Lbfgs, AutomaticStops])
def test_automatic_optimisation(kind):
    same(kind)
    same(kind, log_every_n_steps=3, val_check_interval=2, precision="bf16-mixed")


def test_automatic_optimisation_that_ends_with_an_error():
    assert same(AutomaticWrong)[-1] is MisconfigurationException
    assert same(AutomaticFails)[-1] is ZeroDivisionError


class Scheduled(Automatic):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OwnStep(Automatic):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.note("own step")
        optimizer.step(closure=optimizer_closure)


class OwnZero(Automatic):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.note("own zero")
        optimizer.zero_grad(set_to_none=False)


class OwnClipping(Automatic):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **options: Any) -> None:
        self.note("own clipping")
        self.clip_gradients(optimizer, 0.1)


def averaging() -> Callback:
    return StochasticWeightAveraging(0.01, swa_epoch_start=3)


def test_automatic_optimisation_that_is_not_plain():
    for kind in (Scheduled, OwnStep, OwnZero, OwnClipping):
        same(kind, plain=0)
    same(Automatic, plain=0, gradient_clip_val=0.01)
    same(Automatic, plain=0, accumulate_grad_batches=2)
    same(Automatic, None, averaging, plain=10, max_epochs=4, max_steps=-1)


class Replaces(Two):
    """New optimisers in the middle of an epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        if self.global_step == 2:
            self.trainer.strategy.optimizers = list(self.configure_optimizers())


class OwnLoader(Two):
    """Asks a loader of its own, which ends after three batches."""

    def on_train_start(self) -> None:
        self.own = iter(range(3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        if self.global_step < 6:
            next(self.own)


class Wraps(Two):
    """A step that a module has wrapped by itself stays so."""

    def on_train_start(self) -> None:
        optimizer = counted(self)
        step = optimizer.step

        def wrapped(*args: Any, **options: Any) -> Any:
            self.note("wrapped")
            return step(*args, **options)

        optimizer.step = wrapped


class Changes(Two):
    """Changes the batch that it is given."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.note("length", len(batch))
        batch.append(1)


def test_what_a_module_may_do_in_the_middle_of_an_epoch():
    same(Closes, plain=4, max_steps=7, val_check_interval=100)  # two steps are counted in a batch
    same(Replaces, plain=8)
    same(OwnLoader)
    same(Wraps, plain=0)
    kept = DataLoader([[batch] for batch in torch.linspace(-1, 1, 20).view(5, 2, 2)], batch_size=None)  # pyright: ignore
    same(Changes, lambda: kept, plain=8)
    assert [len(batch) for batch in kept] == [1] * 5


def test_no_process_of_a_loader_outlives_the_fit():
    before = {process.pid for process in multiprocessing.active_children()}
    module = Two()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=3, check_val_every_n_epoch=None, val_check_interval=5, **options)
    shorten_batches(trainer)
    trainer.fit(module, loader(num_workers=1))
    assert module.plain == 3
    assert {process.pid for process in multiprocessing.active_children()} <= before


class Nothing(torch.utils.data.Dataset[Any]):
    """Its third batch is None."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, k: int) -> Any:
        return None if k == 2 else [torch.ones(2, 2) * k]


def unsized() -> Any:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(torch.linspace(-1, 1, 20).view(10, 2))

    return DataLoader(Stream(), batch_size=2)


def test_what_is_not_plain_is_left_to_lightning():
    same(Two, unsized, plain=0)
    same(Two, lambda: [loader(), loader()], plain=0)
    same(Two, lambda: {"a": loader()}, plain=0)
    same(Fetches, plain=0)
    same(Two, plain=0, val_check_interval=timedelta(hours=1))
    same(Two, plain=0, profiler="simple")
    same(Two, plain=0, fast_dev_run=3)
    other = type("Other", (SingleDeviceStrategy,), {})
    (ours, count), (theirs, _) = [trained(short, strategy=other("cpu"), accelerator="auto") for short in (True, False)]
    assert count == 0
    assert ours == theirs


class Few:
    """Has fewer batches than it says."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Any:
        return iter(torch.linspace(-1, 1, 12).view(3, 2, 2))


def test_loaders_with_a_gap():
    same(Two, lambda: DataLoader(Nothing(), batch_size=None), plain=8)
    same(Two, Few, plain=8)


class Remembers(Two):
    """Whether the last batch is still there as one begins, and in an evaluation."""

    last: Any = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.on_validation_start()
        self.last = weakref.ref(batch[0])

    def on_validation_start(self) -> None:
        self.note("last", self.last is not None and self.last() is not None)


def test_a_batch_is_let_go():
    events, *_ = same(Remembers)
    assert [event[1] for event in events if event[0] == "last"] == [False] * (8 + 2)


class Joins(Callback):
    """Brings another at the third batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            trainer.callbacks.append(Notes())


def test_a_callback_that_joins_is_called_from_the_next_batch_on():
    """By Lightning from the hook in which it joins."""
    (events, *_), plain = trained(True, Two, None, Joins)
    assert plain == 8
    assert [event[0] for event in events].count("on_train_batch_end") == 8 + 5


def test_callbacks_that_stop_and_save(tmp_path: Path):
    stopping = same(
        Two, None, lambda: EarlyStopping("score", patience=1, mode="max"), max_steps=100, val_check_interval=2
    )
    assert 2 < len([event for event in stopping[0] if event[0] == "training_step"]) < 100
    saving = lambda: ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, enable_version_counter=False)  # noqa: E731
    same(Two, None, saving)


def saving(folder: Path, every: int) -> Callable[[], Callback]:
    return lambda: ModelCheckpoint(
        folder, "{step}", every_n_train_steps=every, save_top_k=-1, enable_version_counter=False
    )


@pytest.mark.parametrize(("kind", "step"), [(Two, 2), (Two, 3), (Two, 5), (Two, 6), (StepsLate, 2), (Automatic, 3)])
def test_resumed(tmp_path: Path, kind: type[Two], step: int):
    """From the middle of an epoch, its end, and an evaluation."""
    trained(False, kind, None, saving(tmp_path, step))
    same(kind, None, ckpt=tmp_path / f"step={step}.ckpt", max_steps=12)


def test_both_ways_may_follow_each_other(tmp_path: Path):
    """A checkpoint of one is resumed by the other."""
    ends = []
    for first, second in ((True, False), (False, True), (False, False)):
        folder = tmp_path / f"{first}{second}"
        trained(
            first,
            Two,
            None,
            lambda folder=folder: ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1),
        )
        ends.append(trained(second, Two, None, ckpt=folder / "step=4.ckpt")[0])
    assert ends[0] == ends[1] == ends[2]


def test_an_optimiser_is_lightnings_again_after_the_fit():
    torch.manual_seed(0)
    module = Two()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=3, check_val_every_n_epoch=None, val_check_interval=5, **options)
    shorten_batches(trainer)
    trainer.fit(module, loader())
    assert module.plain == 3
    assert plain_epoch(module) is None
    assert all("step" not in vars(optimizer) for optimizer in module.optimizers())  # pyright: ignore


def test_it_is_shorter(monkeypatch: pytest.MonkeyPatch):
    """What it is for: none of the layers between is entered in a plain batch."""
    entered: list[str] = []
    monkeypatch.setattr(PassThroughProfiler, "start", lambda self, name: entered.append(name.rpartition(".")[2]))
    between = {*STEP_HOOKS, "training_step", "optimizer_step", "backward"}
    for kind, most in ((Two, between - {"on_before_zero_grad", "backward"}), (Automatic, between)):
        trained(True, kind)
        assert set(entered).isdisjoint(between)
        trained(False, kind)
        assert set(entered) >= most
        entered.clear()
