"""fp16 with a gradient scaler: steps, clips and norms are those of the unscaled loss. On a CPU, by a plugin given."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stopgrad import FlowContract
from stopgrad.lightning import FlowAudit, loss_name
from stopgrad.lightning.manual import clip_gradients, counted, raw
from stopgrad.runner.finite import Finite, NonFiniteLoss

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


class Two(L.LightningModule):
    """Two linear models with a loss each: one is stepped through Lightning, the other raw, twice a batch."""

    FLOW = FlowContract({"a_loss": {"a": "open", "b": "blocked"}, "b_loss": {"b": "open", "a": "blocked"}})

    def __init__(self, factor: float = 1.0, max_norm: float = math.inf) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.a, self.b, self.unused = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)
        self.factor, self.max_norm = factor, max_norm
        self.clipped: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for name, optimizers in (("a", [counted(self, 0)]), ("b", [raw(self, 1), raw(self, 1)])):
            for optimizer in optimizers:
                optimizer.zero_grad()
                with loss_name(f"{name}_loss"):
                    self.manual_backward(self.factor * getattr(self, name)(batch[0]).float().square().mean())
                self.clipped.append(float(clip_gradients(self, optimizer, self.max_norm)))
                optimizer.step()
        raw(self, 2).step()  # nothing arrived there

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(each.parameters(), lr=0.01) for each in (self.a, self.b, self.unused)]


def fitted(module: Two, scale: float | None, *callbacks: L.Callback, steps: int = 1, growth: int = 2000) -> Any:
    """The scaler after a training of so many batches, with losses scaled so at first; None trains in fp32."""
    data = DataLoader(
        TensorDataset(torch.randn(8 * steps, 4, generator=torch.Generator().manual_seed(0))), batch_size=8
    )
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth)
    plain: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        enable_model_summary=False,
        callbacks=list(callbacks),
        plugins=None if scaler is None else [MixedPrecision("16-mixed", "cpu", scaler)],
        **plain,
    )
    trainer.fit(module, data)
    assert trainer.global_step == steps
    return scaler


def weights(module: Two) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("max_norm", [math.inf, 0.05])
def test_raw_and_counted_steps_are_those_of_fp32(max_norm: float) -> None:
    plain, scaled = Two(max_norm=max_norm), Two(max_norm=max_norm)
    before = weights(plain)
    fitted(plain, None, steps=4)
    assert fitted(scaled, 2.0**10, steps=4).get_scale() == 2.0**10
    moved = (weights(plain) - before).norm()
    assert moved > 0.001
    assert (weights(plain) - weights(scaled)).norm() < 5e-3 * moved
    assert scaled.clipped == pytest.approx(plain.clipped, rel=5e-3)
    if max_norm < math.inf:
        assert min(plain.clipped) > max_norm  # it did clip


def test_a_step_that_overflows_is_left_out_and_the_scale_halved() -> None:
    module = Two()
    before = weights(module)
    scaler = fitted(module, 2.0**40)
    assert torch.equal(weights(module), before)
    assert scaler.get_scale() == 2.0**37  # once for each of the three steps


def test_norms_of_the_audit_are_those_of_fp32() -> None:
    full, half = FlowAudit(), FlowAudit()
    fitted(Two(), None, full)
    fitted(Two(), 2.0**10, half, growth=1)  # the scale has doubled thrice when the batch ends
    assert full.matrix is not None
    assert half.matrix is not None
    for loss, part in (("a_loss", "a"), ("b_loss", "b")):
        assert half.matrix[loss, part].norm == pytest.approx(full.matrix[loss, part].norm, rel=5e-3)
        assert half.matrix[loss, part].state == "open"
    drawn = [{(e["from"], e["to"]): e["losses"] for e in each.record["edges"]} for each in (full, half) if each.record]
    for way, losses in drawn[0].items():
        for loss, of in losses.items():
            assert drawn[1][way][loss]["norm"] == pytest.approx(of["norm"], rel=5e-3)


@pytest.mark.parametrize("steps", [1, 30])
def test_first_audit_goes_on_until_nothing_overflows(steps: int) -> None:
    audit = FlowAudit()
    fitted(Two(), 2.0**30, audit, steps=steps)
    assert audit.matrix is not None
    assert math.isfinite(audit.matrix["a_loss", "a"].norm) == (steps > 1)
    assert audit.matrix["a_loss", "a"].state == "open"
    assert audit.record is not None
    (part,) = [n for n in audit.record["nodes"] if n["id"] == "a"]
    assert (part["learns"]["a_loss"] not in ("inf", "nan")) == (steps > 1)
    assert audit.violations == []


def test_a_loss_without_a_name_has_that_of_its_optimiser_though_its_step_is_left_out() -> None:
    class Unnamed(Two):
        FLOW = FlowContract({})

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for index, net in enumerate((self.a, self.b)):
                optimizer = counted(self, index)
                optimizer.zero_grad()
                self.manual_backward(net(batch[0]).float().square().mean())
                optimizer.step()

    audit = FlowAudit(watch=False, contract={"*": {}})
    data = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=8)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    plain: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, callbacks=[audit], plugins=[plugin], **plain
    ).fit(Unnamed(), data)
    assert audit.matrix is not None
    assert audit.matrix.losses == ("optimizer_0", "optimizer_1")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loss_is_finite_though_fp16_could_not_hold_the_scaled_one(at_once: bool) -> None:
    fitted(Two(factor=10.0), 2.0**20, Finite(at_once), steps=2)
    with pytest.raises(NonFiniteLoss, match="a_loss is inf at step 0"):
        fitted(Two(factor=math.inf), 2.0**20, Finite(at_once), steps=2)
