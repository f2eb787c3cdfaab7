"""``backward(self, loss, name)`` is ``manual_backward`` of a named loss; idle hooks are left out of a step."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stopgrad.lightning import loss_being_named, loss_name
from stopgrad.lightning.lightning_internals import STEP_HOOKS, rest_idle_hooks, shorten_batches
from stopgrad.lightning.manual import backward, clip_gradients, counted

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


class Line(L.LightningModule):
    """One weight whose gradient is 1 at each batch."""

    def __init__(self, ours: bool, automatic: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.weight = nn.Parameter(torch.zeros(1))
        self.one = torch.ones(1)  # saved for backward
        self.ours, self.events = ours, []

    def note(self, *what: Any) -> None:
        grad = None if self.weight.grad is None else self.weight.grad.item()
        self.events.append((*what, loss_being_named(), grad, self.weight.item()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = (self.weight * self.one).sum()
        if self.automatic_optimization:
            return loss
        optimizer = counted(self)
        optimizer.zero_grad()
        if self.ours:
            backward(self, loss, "line_loss", retain_graph=True)
        else:
            with loss_name("line_loss"):
                self.manual_backward(loss, retain_graph=True)
        torch.autograd.grad(loss, self.weight)  # raises if the graph is gone
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Hooked(Line):
    def on_before_backward(self, loss: Tensor) -> None:
        self.note("module before", loss.item())

    def on_after_backward(self) -> None:
        self.note("module after")


class OwnBackward(Line):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.note("own", kwargs)
        loss.backward(*args, **kwargs)


class Listener(Callback):
    """Notes and logs at two hooks of a backward; has the others of none."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        pl_module.note("callback before", loss.item())
        pl_module.log("seen", loss.detach())

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.note("callback after")


def fitted(module: Line, *callbacks: Callback, short: bool = False, **options: Any) -> L.Trainer:
    plain: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain |= {"enable_model_summary": False, "check_val_every_n_epoch": None}
    trainer = L.Trainer(accelerator="cpu", max_steps=2, callbacks=list(callbacks), **(plain | options))
    if short:
        rest_idle_hooks(trainer, module)
        shorten_batches(trainer)
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(2, 1))))
    assert trainer.global_step == 2
    return trainer


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("kind", [Line, Hooked, OwnBackward])
def test_it_does_what_manual_backward_does(kind: type[Line], short: bool):
    ours, theirs = kind(ours=True), kind(ours=False)
    found = [fitted(module, Listener(), short=short).callback_metrics for module in (ours, theirs)]
    assert ours.events == theirs.events
    assert len(ours.events) == {Line: 4, Hooked: 8, OwnBackward: 6}[kind]
    assert all(name == "line_loss" for *_, name, _, _ in ours.events)
    assert found[0] == found[1] == {"seen": -1.0}
    assert ours.weight.item() == theirs.weight.item() == -2.0


def test_a_scaler_and_other_strategies_are_lightnings(monkeypatch: pytest.MonkeyPatch):
    """Everywhere but on one device without a scaler the backward is Lightning's own."""
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.strategies import SingleDeviceStrategy

    called = []
    own = L.LightningModule.manual_backward
    monkeypatch.setattr(
        L.LightningModule,
        "manual_backward",
        lambda self, *a, **k: (called.append(loss_being_named()), own(self, *a, **k)),
    )
    fitted(Line(ours=True), short=True)
    fitted(Line(ours=True), precision="bf16-mixed", short=True)
    assert called == []
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    fitted(Line(ours=True), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], short=True)
    assert called == ["line_loss"] * 2

    class Other(SingleDeviceStrategy):
        pass

    fitted(Line(ours=True), strategy=Other("cpu"), short=True)
    assert called == ["line_loss"] * 4
    fitted(Line(ours=True))  # under a Trainer that a user has made
    assert called == ["line_loss"] * 6


def test_one_that_was_put_in_its_place_is_called():
    module = Line(ours=True)
    module.manual_backward = lambda loss, **options: (module.note("mine"), loss.backward(**options))
    fitted(module, short=True)
    assert [event[0] for event in module.events] == ["mine", "mine"]


@pytest.mark.parametrize("automatic", [False, True])
def test_idle_hooks_rest_and_no_other(automatic: bool):
    module, listener = Hooked(ours=True, automatic=automatic), Listener()
    module.on_train_batch_end = lambda *_: module.note("set on the instance")
    other = LambdaCallback(on_train_batch_start=lambda *_: module.note("lambda"))
    fitted(module, listener, other, short=True)
    kept = {"on_before_backward", "on_after_backward"}
    assert {name for name in STEP_HOOKS if getattr(listener, name)} == kept
    assert {name for name in STEP_HOOKS if getattr(module, name)} == kept | {"on_train_batch_end"}
    assert {name for name in STEP_HOOKS if getattr(other, name)} == {"on_train_batch_start"}
    batch = ["lambda", "callback before", "module before", "callback after", "module after", "set on the instance"]
    assert [event[0] for event in module.events] == batch * 2


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")
@pytest.mark.parametrize(
    ("options", "rests"),
    [({}, True), ({"every_n_train_steps": 2}, False), ({"train_time_interval": timedelta(0)}, False)],
)
def test_a_checkpoint_of_evaluations_rests(tmp_path: Path, options: dict[str, Any], rests: bool):
    module, saving = Line(ours=True), ModelCheckpoint(tmp_path, **options)
    fitted(module, saving, short=True, enable_checkpointing=True)
    assert (saving.on_train_batch_end is None) is rests


def test_what_rests_costs_nothing():
    """Where a profiler asks for Lightning's own layers, they enter no profile for a hook that rests."""
    from lightning.pytorch.profilers import PassThroughProfiler

    class Entered(PassThroughProfiler):
        def start(self, action_name: str) -> None:
            entered.append(action_name)

    entered: list[str] = []
    fitted(Line(ours=False, automatic=True), Listener(), Callback(), short=True, profiler=Entered())
    hooks = [name for name in entered if name.rpartition(".")[2] in STEP_HOOKS and not name.startswith("[Strategy]")]
    assert hooks == ["[Callback]Listener.on_before_backward", "[Callback]Listener.on_after_backward"] * 2


class Clips(L.LightningModule):
    """Clips two layers' gradients by ours, and copies of them by PyTorch's own."""

    def __init__(self, max_norm: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers, self.max_norm, self.found = nn.Sequential(nn.Linear(1, 7), nn.Linear(7, 3)), max_norm, []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, held = counted(self), list(self.parameters())
        optimizer.zero_grad()
        if batch_idx:  # before there is a gradient there is nothing to clip
            backward(self, self.layers(batch[0]).square().sum(), "loss")
        copies = [nn.Parameter(p.detach().clone()) for p in held]
        for copied, p in zip(copies, held, strict=True):
            copied.grad = None if p.grad is None else p.grad.clone()
        wanted = nn.utils.clip_grad_norm_(copies, self.max_norm)
        self.found.append(torch.equal(clip_gradients(self, optimizer, self.max_norm), wanted))
        pairs = [(p.grad, copied.grad) for p, copied in zip(held, copies, strict=True) if p.grad is not None]
        self.found += [len(pairs) == (4 if batch_idx else 0), *(torch.equal(a, b) for a, b in pairs)]
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradients_are_clipped_as_pytorch_clips_them(max_norm):
    torch.manual_seed(0)
    module = Clips(max_norm)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, check_val_every_n_epoch=None, **quiet
    )
    shorten_batches(trainer)
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(6, 1)), batch_size=2))
    assert len(module.found) == 2 + 2 * 6
    assert all(module.found)
