"""What moves although it is called frozen, and whether the audit says why."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from conf_tests.audit.test_lightning import fit
from conf_tests.installed import hooks_on, step_hooks
from stopgrad.audits.freeze import FreezeWatch, FrozenDrift, Part, frozen_modules, train_eval_gap
from stopgrad.lightning import FreezeAudit

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def _nets() -> tuple[nn.Sequential, nn.Linear]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 1)


def _train(
    make: Callable[..., Optimizer],
    *,
    set_to_none: bool = True,
    frozen: bool = True,
    warm: bool = True,
    eval_: bool = True,
) -> dict[str, tuple[str, str]]:
    """Train two steps freely, freeze, two more; ``{name: (kind, reason)}`` of what moved in the last two."""
    backbone, head = _nets()
    if eval_:
        backbone.eval()
    optimizer = make([*backbone.parameters(), *head.parameters()])

    def step(stopped: bool) -> None:
        features = backbone(X)
        loss = head(features.detach() if stopped else features).square().mean()
        optimizer.zero_grad(set_to_none=set_to_none)
        loss.backward()
        optimizer.step()

    for _ in range(2 if warm else 0):
        step(stopped=False)
    if frozen:
        backbone.requires_grad_(False)
    with FreezeWatch({"backbone": backbone}, [optimizer]) as watch:
        for _ in range(2):
            step(stopped=frozen)
    assert hooks_on(optimizer) == 0
    return {drift.name: (drift.kind, drift.reason) for drift in watch.drifts()}


def test_nothing_moves_when_gradients_are_none() -> None:
    for make in (lambda p: Adam(p), lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.01)):
        assert _train(make) == {}


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda p: Adam(p), "running averages"),
        (lambda p: SGD(p, 0.1, momentum=0.9), "momentum"),
        (lambda p: SGD(p, 0.1, weight_decay=0.01), "weight decay 0.01"),
    ],
)
def test_zero_gradients_move_it(make: Callable[..., Optimizer], culprit: str) -> None:
    found = _train(make, set_to_none=False)
    kind, reason = found["backbone.0.weight"]
    assert kind == "parameter"
    assert "zeros and not None" in reason
    assert culprit in reason


def test_plain_sgd_with_zero_gradients_moves_nothing() -> None:
    assert _train(lambda p: SGD(p, 0.1), set_to_none=False) == {}


def test_optimizer_state_is_watched() -> None:
    found = _train(Adam, set_to_none=False)
    assert found["backbone.0.weight (exp_avg)"][0] == "optimizer"


def test_a_live_gradient_and_a_stale_one_are_told_apart() -> None:
    assert "requires_grad is True" in _train(lambda p: SGD(p, 0.1), frozen=False)["backbone.0.weight"][1]
    backbone, _ = _nets()
    optimizer = SGD(backbone.parameters(), 0.1)
    backbone(X).square().mean().backward()
    backbone.requires_grad_(False)
    with FreezeWatch({"backbone": backbone}, [optimizer]) as watch:
        optimizer.step()
    drifts = [drift for drift in watch.drifts() if drift.name == "backbone.0.weight"]
    assert "stale gradient" in drifts[0].reason
    assert backbone[0].weight.grad is not None
    assert drifts[0].amount == pytest.approx(0.1 * backbone[0].weight.grad.abs().max().item(), rel=1e-4)


def test_batch_norm_moves_in_train_mode_only() -> None:
    found = _train(lambda p: SGD(p, 0.1), eval_=False)
    assert set(found) == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert all(kind == "buffer" and "train mode" in reason for kind, reason in found.values())


def test_a_write_outside_an_optimiser_is_named_so() -> None:
    backbone, _ = _nets()
    with FreezeWatch(backbone) as watch:
        backbone[0].weight.data.add_(1)
    how = "without a change of its version (.data, NumPy or a raw storage)"
    assert [(d.name, d.amount, d.reason) for d in watch.drifts()] == [
        ("0.weight", pytest.approx(1.0), f"written to outside the step of any torch.optim optimiser, {how}")
    ]


def test_features_in_train_and_eval_mode() -> None:
    backbone, head = _nets()
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    assert train_eval_gap(head, torch.ones(2, 8)) == 0.0
    assert train_eval_gap(backbone, X) > 0.1
    assert all(torch.equal(t, before[name]) for name, t in backbone.state_dict().items())


def test_frozen_modules_are_the_outermost() -> None:
    backbone, head = _nets()
    backbone.requires_grad_(False)
    assert list(frozen_modules({"net": nn.ModuleDict({"backbone": backbone, "head": head})})) == ["backbone"]


class Probe(L.LightningModule):
    def __init__(self, keep_eval: bool) -> None:
        super().__init__()
        self.backbone, self.head = _nets()
        self.backbone.requires_grad_(False)
        self.keep_eval = keep_eval

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.keep_eval:
            self.backbone.eval()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.head(self.backbone(batch[0])), batch[0].sum(1, keepdim=True))

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), weight_decay=0.01)


def test_the_callback_passes_a_backbone_in_eval_mode() -> None:
    callback = FreezeAudit(every_n_steps=1)
    module = Probe(keep_eval=True)
    fit(module, callback)
    assert callback.drifts == []
    assert callback.gaps["backbone"] > 0
    assert hooks_on(module.backbone) == 0


def test_the_callback_catches_batch_norm() -> None:
    module = Probe(keep_eval=False)
    with pytest.raises(FrozenDrift, match=r"buffer backbone.1.running_mean moved by .*BatchNorm"):
        fit(module, FreezeAudit())
    with pytest.warns(UserWarning, match="running_var"):
        fit(Probe(keep_eval=False), FreezeAudit(parts=["backbone"], on_violation="warn"))
    assert hooks_on(module.backbone) == 0


def test_the_callback_refuses_unknown_parts_and_idles_where_nothing_is_frozen() -> None:
    with pytest.raises(ValueError, match="no part 'bakbone'; did you mean backbone"):
        fit(Probe(True), FreezeAudit(parts=["bakbone"]))
    module, callback = Probe(True), FreezeAudit()
    module.requires_grad_(True)
    with pytest.warns(UserWarning, match="nothing is frozen, so it does nothing"):
        fit(module, callback)
    assert callback.drifts == []


def test_the_callback_takes_wildcards_and_one_name() -> None:
    for parts in ("backbone", ["back*"], {"backbone": ...}):
        callback = FreezeAudit(parts=parts)
        fit(Probe(keep_eval=True), callback)
        assert set(callback.gaps) == {"backbone"}


def test_the_training_is_the_same_bit_for_bit() -> None:
    weights = []
    for callbacks in ([], [FreezeAudit(every_n_steps=1)]):
        module = Probe(keep_eval=True)
        fit(module, *callbacks, batches=5)
        weights.append(module.state_dict())
        assert hooks_on(module) == 0
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert step_hooks() == 0


def test_a_watch_that_is_dropped_takes_its_hooks_along() -> None:
    backbone, _ = _nets()
    watch = FreezeWatch(backbone, [SGD(backbone.parameters(), 0.1)])
    assert step_hooks() == 2
    copied, stored = copy.deepcopy(backbone), pickle.dumps(backbone)
    del watch
    gc.collect()
    assert step_hooks() == 0
    assert hooks_on(backbone) == 0
    for other in (copied, pickle.loads(stored)):
        assert torch.equal(other(X), backbone(X))


@pytest.mark.parametrize(
    ("frozen", "error", "message"),
    [
        ({}, ValueError, "nothing to watch"),
        ({"x": nn.ReLU()}, ValueError, "'x' has no parameters"),
        ({"x": 3.0}, TypeError, "float"),
        ({"x": [3.0]}, TypeError, r"'x' holds a float; pass modules"),
        ({"x": torch.ones(2, requires_grad=True) * 2}, TypeError, "computed; pass the parameter, or Part"),
        ({"x": Part(nn.Linear(2, 2), 5)}, IndexError, "out of bounds"),
    ],
)
def test_what_cannot_be_watched_is_refused(frozen: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FreezeWatch(frozen)
    gc.collect()
    assert step_hooks() == 0


def test_buffers_are_followed_by_name() -> None:
    """A buffer that is assigned, not written to, moved all the same; a cache that grows did not."""
    module = nn.BatchNorm1d(2).eval()
    module.register_buffer("centre", torch.zeros(2))
    module.register_buffer("cache", torch.zeros(2), persistent=False)
    with FreezeWatch({"module": module}) as watch:
        module.centre = module.centre + 1
        module.cache = torch.zeros(3)
        module.running_mean = torch.zeros(3)
    assert {d.name: (d.kind, d.amount) for d in watch.drifts()} == {
        "module.centre": ("buffer", 1.0),
        "module.running_mean": ("buffer", 0.0),
    }


def test_a_lazy_parameter_that_gets_its_values_is_no_drift() -> None:
    lazy = nn.LazyLinear(3)
    with FreezeWatch({"lazy": lazy}) as watch:
        lazy(X)
    assert watch.drifts() == []
