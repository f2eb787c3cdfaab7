"""Reports of frozen things that moved: who moved them, what was exchanged, which rows, and dropout that stays on."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from conf_tests.audit.test_lightning import fit
from conf_tests.installed import hooks_on
from stopgrad.freeze import Drift, FreezeWatch, FrozenDrift, Part, train_eval_gap
from stopgrad.lightning import FreezeAudit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers", "ignore:Found . module.s. in eval mode"
)


def _drifts(watch: FreezeWatch) -> dict[str, Drift]:
    return {drift.name: drift for drift in watch.drifts()}


class Decaying(Optimizer):
    """Decays all that it holds, also what has no gradient; through ``.data`` where it is told to."""

    def __init__(self, parameters: Any, *, silent: bool = False) -> None:
        super().__init__(parameters, {"lr": 0.1, "weight_decay": 0.1})
        self.silent = silent

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                (p.data if self.silent else p).mul_(1 - group["lr"] * group["weight_decay"])
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


def _nets() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1)


# ---- who moved it


@pytest.mark.parametrize("silent", [False, True])
def test_an_own_optimiser_decays_what_has_no_gradient(silent: bool) -> None:
    """https://github.com/KellerJordan/Muon/issues/54: it decays its whole group, also parameters whose grad is None."""
    body, head = _nets()
    optimizer = Decaying([*body.parameters(), *head.parameters()], silent=silent)
    with FreezeWatch({"body": body}, [optimizer]) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            head(body(torch.randn(8, 4))).mean().backward()
            optimizer.step()
    found = _drifts(watch)
    assert set(found) == {"body.weight", "body.bias"}
    assert all("the step of Decaying multiplies it by 0.99 (weight_decay=0.1)" in d.reason for d in found.values())


def test_torchs_optimisers_skip_it() -> None:
    """https://github.com/facebookresearch/moco/issues/14 asks whether SGD decays the frozen encoder. It does not."""
    body, head = _nets()
    for make in (lambda p: SGD(p, 0.1, weight_decay=0.1), lambda p: AdamW(p, weight_decay=0.1)):
        optimizer = make([*body.parameters(), *head.parameters()])
        with FreezeWatch({"body": body}, [optimizer]) as watch:
            for _ in range(6):
                optimizer.zero_grad()
                head(body(torch.randn(8, 4))).mean().backward()
                optimizer.step()
        assert watch.drifts() == []


class Wrapper(Optimizer):
    """Decays by itself before it calls the optimiser inside, as some training code does."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": 0.1, "wd": 0.5})
        self.inner = inner

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            p.data.mul_(0.95)
        self.inner.step(closure)


def test_a_wrapper_decays_before_the_step_inside() -> None:
    """https://github.com/open-mmlab/OpenPCDet/issues/845: a wrapper around Adam moves frozen layers."""
    body, head = _nets()
    inner = Adam([*body.parameters(), *head.parameters()])
    wrapper = Wrapper(inner)
    with FreezeWatch({"body": body}, [inner]) as watch:
        for _ in range(5):
            wrapper.zero_grad()
            head(body(torch.randn(8, 4))).mean().backward()
            wrapper.step()
    reason = _drifts(watch)["body.weight"].reason
    assert "the step of Wrapper, which was not handed over, multiplies it by 0.95" in reason
    assert "Adam" not in reason


def test_an_optimiser_that_nobody_handed_over_is_named() -> None:
    """https://github.com/iamwangyabin/S-Prompts/pull/2: frozen by the flag, and the optimiser moves it."""
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizer = SGD([*body.parameters(), *head.parameters()], 0.1, weight_decay=0.1)
    head(body(torch.randn(8, 4))).mean().backward()
    body.requires_grad_(False)
    with FreezeWatch({"body": body}) as watch:
        optimizer.zero_grad(set_to_none=False)
        head(body(torch.randn(8, 4))).mean().backward()
        optimizer.step()
    reason = _drifts(watch)["body.weight"].reason
    assert "gradient is zeros" in reason
    assert "weight decay 0.1 moves it by SGD, which was not handed over" in reason


class Plain:
    """No ``torch.optim.Optimizer``: nobody can see it step."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    def step(self) -> None:
        with torch.no_grad():
            for p in self.parameters:
                p.mul_(0.9)


def test_no_cause_is_named_that_was_not_seen() -> None:
    """https://github.com/facebookresearch/fairseq/issues/4702: updated all the same, and nobody knows by what."""
    body, head = _nets()
    optimizer, other = SGD(head.parameters(), 0.1), Plain(body.parameters())
    with FreezeWatch({"body": body}, [optimizer]) as watch:
        for _ in range(3):
            head(body(torch.randn(8, 4))).mean().backward()
            optimizer.step()
            other.step()
    reason = _drifts(watch)["body.weight"].reason
    assert reason == "written to outside the step of any torch.optim optimiser"


def test_a_write_in_the_closure_is_not_the_optimisers() -> None:
    """https://github.com/pytorch/pytorch/issues/28959: an embedding with max_norm writes to its weight in forward.

    Under Lightning, and with LBFGS, the forward runs inside of the optimiser's step.
    """
    torch.manual_seed(0)
    embed, head = nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 1)
    embed.requires_grad_(False)
    for optimizer in (SGD([*embed.parameters(), *head.parameters()], 0.1), torch.optim.LBFGS(head.parameters())):
        nn.init.normal_(embed.weight)

        def closure(optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = head(embed(torch.arange(5))).square().mean()
            loss.backward()
            return loss

        with FreezeWatch({"embed": embed}, [optimizer]) as watch:
            for _ in range(3):
                optimizer.step(closure)
        assert _drifts(watch)["embed.weight"].reason.startswith("max_norm=0.1: the embedding's forward scales the rows")


def test_the_closure_is_called_with_what_it_is_given_and_its_value_comes_back() -> None:
    """Lightning reads the loss from what the step returns."""
    body, head = _nets()
    optimizer = SGD([*body.parameters(), *head.parameters()], 0.1)
    with FreezeWatch({"body": body}, [optimizer]):
        assert optimizer.step(lambda: 3.0) == 3.0
        assert optimizer.step(closure=lambda: 4.0) == 4.0


def test_momentum_from_before_the_freeze() -> None:
    """https://github.com/megvii-model/DetNAS/issues/3: zeros were set to None, because zeros let momentum go on."""
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizer = SGD([*body.parameters(), *head.parameters()], 0.1, momentum=0.9)
    for _ in range(2):
        head(body(torch.randn(8, 4))).mean().backward()
        optimizer.step()
    body.requires_grad_(False)
    with FreezeWatch({"body": body}, [optimizer]) as watch:
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    found = _drifts(watch)
    assert "so momentum moves it" in found["body.weight"].reason
    assert "so momentum moves it" in found["body.weight (momentum_buffer)"].reason


# ---- what was exchanged


def _reassign(m: nn.ModuleDict) -> None:
    m["embed"].weight = nn.Parameter(torch.randn(6, 4))


def _assign_state(m: nn.ModuleDict) -> None:
    m["embed"].load_state_dict({"weight": torch.zeros(5, 4)}, assign=True)


def _adapters(m: nn.ModuleDict) -> None:
    m["embed"].lora_a = nn.Parameter(torch.zeros(5, 2))


def _weight_norm(m: nn.ModuleDict) -> None:
    weight = m["embed"].weight
    del m["embed"].weight
    m["embed"].weight_g, m["embed"].weight_v = nn.Parameter(weight.norm(dim=1)), nn.Parameter(weight.detach().clone())


def _swap_module(m: nn.ModuleDict) -> None:
    m["embed"] = nn.Embedding(6, 4)


def _wrap(m: nn.ModuleDict) -> None:
    m["embed"] = nn.Sequential(m["embed"])
    m["embed"][0].weight = nn.Parameter(m["embed"][0].weight.detach().clone())


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (_reassign, {"replaced"}),
        (_assign_state, {"replaced"}),
        (_adapters, {"added"}),
        (_weight_norm, {"removed", "added"}),
        (_swap_module, {"replaced"}),
        (_wrap, {"removed", "added"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_frozen_module_gets_a_new_parameter(change: Any, kinds: set[str]) -> None:
    """A frozen part's Parameter is another one than before, whether it trains or not.

    https://github.com/huggingface/transformers/issues/26861: a resize makes a new one, which requires grad;
    https://github.com/kohjingyu/fromage/issues/18: so a frozen head was trained;
    https://github.com/pytorch/torchtitan/pull/3886: a wrapper registers new ones, all trainable;
    https://github.com/pytorch/pytorch/pull/121157: ``load_state_dict(assign=True)``.
    """
    torch.manual_seed(0)
    m = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 1)})
    m["embed"].requires_grad_(False)
    with FreezeWatch(lambda: {"embed": m["embed"]}) as watch:
        assert watch.drifts() == []
        change(m)
    found = watch.drifts()
    assert {d.kind for d in found} == kinds
    assert all(d.name.startswith("embed") for d in found)
    new = [d for d in found if d.kind != "removed"]
    assert all(("requires grad" in d.reason) == (change is not _assign_state) for d in new)


def test_what_was_resized_through_data_is_told_too() -> None:
    """https://github.com/huggingface/transformers/pull/3532: the same Parameter, with other values of another shape."""
    embed = nn.Embedding(5, 4).requires_grad_(False)
    with FreezeWatch({"embed": embed}) as watch:
        embed.weight.data = torch.cat([embed.weight.data, torch.ones(1, 4)])
    (found,) = watch.drifts()
    assert (found.kind, found.amount) == ("parameter", 0.0)
    assert "its .data is another tensor now, of shape 6x4; it was 5x4" in found.reason


def test_a_wrapper_that_keeps_the_parameters_is_no_drift() -> None:
    """DDP, a parametrisation and an added layer around it move nothing: other names, the same tensors."""
    m = nn.ModuleDict({"embed": nn.Embedding(5, 4)}).requires_grad_(False)
    with FreezeWatch(lambda: {"m": m}) as watch:
        m["embed"] = nn.Sequential(m["embed"], nn.Identity())
        nn.utils.parametrize.register_parametrization(m["embed"][0], "weight", nn.Identity())
    assert watch.drifts() == []


class Finetune(L.LightningModule):
    def __init__(self, change: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)).requires_grad_(False)
        self.head = nn.Linear(8, 1)
        self.change = change
        if change != "dropout":
            self.backbone.eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and self.change == "layer":
            self.backbone[0] = nn.Linear(4, 8)
        if batch_idx == 1 and self.change == "backbone":
            self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.head(self.backbone(batch[0])), batch[0].sum(1, keepdim=True))

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.head.parameters(), lr=0.01)


@pytest.mark.parametrize("parts", [None, ["backbone"], ["backbone.0", "backbone.0.weight"]])
@pytest.mark.parametrize("change", ["layer", "backbone"])
def test_the_callback_looks_up_names_again(change: str, parts: list[str] | None) -> None:
    """https://github.com/huggingface/transformers/issues/26861 under Lightning: the module itself is exchanged."""
    with pytest.raises(FrozenDrift, match=r"parameter backbone\.0\.weight was replaced"):
        fit(Finetune(change), FreezeAudit(parts))
    fit(Finetune("nothing"), FreezeAudit(parts))


# ---- a part of a parameter


def _learn_one_token(make: Any, *, restore: bool = False, index: Any = slice(0, 5)) -> dict[str, Drift]:
    torch.manual_seed(0)
    embed, head = nn.Embedding(6, 4), nn.Linear(4, 1)
    mask = torch.zeros(6, 1)
    mask[5] = 1
    embed.weight.register_hook(lambda grad: grad * mask)
    optimizer = make([*embed.parameters(), *head.parameters()])
    old = embed.weight[:5].detach().clone()
    with FreezeWatch({"old": Part(embed, index)}, [optimizer]) as watch:
        for _ in range(5):
            optimizer.zero_grad()
            head(embed(torch.arange(6))).square().mean().backward()
            optimizer.step()
            if restore:
                with torch.no_grad():
                    embed.weight[:5] = old
    return _drifts(watch)


@pytest.mark.parametrize("index", [slice(0, 5), range(5), [0, 1, 2, 3, 4], torch.arange(6) < 5, 2])
def test_the_vocabulary_decays_while_one_token_is_learned(index: Any) -> None:
    """https://github.com/huggingface/diffusers/issues/1009: the gradient of the other rows is zeroed, and they shrink.

    Writing them back after each step (https://github.com/huggingface/diffusers/pull/855) mends it.
    """
    found = _learn_one_token(lambda p: AdamW(p, lr=0.1), index=index)
    assert "its gradient there is zeros, and weight decay 0.01 moves it;" in found["old.weight"].reason
    assert _learn_one_token(lambda p: AdamW(p, lr=0.1), restore=True, index=index) == {}
    assert _learn_one_token(lambda p: AdamW(p, lr=0.1, weight_decay=0.0), index=index) == {}


def test_pruned_weights_come_back_by_momentum() -> None:
    """https://github.com/he-y/filter-pruning-geometric-median/issues/47: gradients are masked, momentum is not."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    optimizer = SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    pruned = layer.weight.abs() < layer.weight.abs().median()
    with torch.no_grad():
        layer.weight[pruned] = 0
    layer.weight.register_hook(lambda grad: grad * ~pruned)
    with FreezeWatch({"pruned": Part(layer.weight, pruned)}, [optimizer]) as watch:
        optimizer.zero_grad()
        layer(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    found = _drifts(watch)
    assert found["pruned"].amount == pytest.approx(layer.weight.detach()[pruned].abs().max().item())
    assert "its gradient there is zeros, and momentum moves it" in found["pruned"].reason


def test_the_row_of_the_padding_decays() -> None:
    """https://github.com/huggingface/transformers/issues/5570: to freeze a few rows, such as padding_idx."""
    torch.manual_seed(0)
    embed = nn.Embedding(6, 4, padding_idx=2)
    with torch.no_grad():
        embed.weight[2] = 1.0
    optimizer = SGD(embed.parameters(), 0.1, weight_decay=0.1)
    with FreezeWatch({"padding": embed.weight[2]}, [optimizer]) as watch:  # a view of the parameter will do
        embed(torch.arange(6)).square().mean().backward()
        optimizer.step()
    (found,) = watch.drifts()
    assert (found.name, found.amount) == ("padding", pytest.approx(0.01, rel=1e-4))
    assert "weight decay 0.1" in found.reason


VIEWS = [lambda w: w[:2], lambda w: w.data[:2], lambda w: w.detach()[:2], lambda w: w.T[:, :2]]


@pytest.mark.parametrize("view", VIEWS)
def test_views_name_the_gradient_that_moves_them(view: Any) -> None:
    """The first classes of a head are frozen by nothing but the wish."""
    torch.manual_seed(0)
    head = nn.Linear(4, 5)
    optimizer = SGD(head.parameters(), 0.1)
    with FreezeWatch({"old classes": view(head.weight)}, [optimizer]) as watch:
        head(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert head.weight.grad is not None
    (found,) = watch.drifts()
    assert found.amount == pytest.approx(0.1 * float(head.weight.grad[:2].abs().max()), rel=1e-4)
    assert "stepped: a gradient arrived" in found.reason


class OneToken(L.LightningModule):
    def __init__(self, decay: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.decay = nn.Embedding(6, 4), nn.Linear(4, 1), decay
        self.embed.weight.register_hook(lambda grad: grad * (torch.arange(6) == 5)[:, None])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.embed(torch.arange(6))).square().mean()

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.parameters(), lr=0.1, weight_decay=self.decay)


def test_the_callback_watches_rows_by_name() -> None:
    """https://github.com/hiyouga/LlamaFactory/pull/10563 freezes rows by a hook on the gradient."""
    parts = {"embed.weight": range(5)}
    with pytest.raises(FrozenDrift, match=r"parameter embed\.weight moved by .* weight decay 0.1"):
        fit(OneToken(0.1), FreezeAudit(parts))
    callback = FreezeAudit(parts)
    fit(OneToken(0.0), callback)
    assert callback.drifts == []


def test_masked_rows_under_a_sparse_gradient() -> None:
    """SparseAdam touches the rows that were looked up alone: nothing else moves."""
    embed = nn.Embedding(6, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(embed.parameters(), lr=0.1)
    with FreezeWatch({"rest": Part(embed, slice(0, 4)), "used": Part(embed, 5)}, [optimizer]) as watch:
        embed(torch.tensor([5])).sum().backward()
        optimizer.step()
    found = _drifts(watch)
    assert [name for name, d in found.items() if d.kind == "parameter"] == ["used.weight"]
    assert "a gradient arrived there" in found["used.weight"].reason


# ---- dropout that is on


def _teacher(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return {
        "module": lambda: nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3)),
        "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True),
        "lstm": lambda: nn.LSTM(4, 3, num_layers=2, dropout=0.4, batch_first=True),
        "functional": lambda: Functional(),
    }[kind]().requires_grad_(False)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.seen = nn.Linear(4, 3), 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        return F.dropout(self.layer(x), 0.5, self.training)


@pytest.mark.parametrize("kind", ["module", "transformer", "lstm", "functional"])
def test_a_teacher_with_its_dropout_on(kind: str) -> None:
    """https://github.com/vrvlive/knowlege-distillation/issues/2: nobody called eval() on the teacher.

    https://github.com/Sharpiless/yolov5-distillation-5.0/issues/5: somebody called train().
    """
    teacher = _teacher(kind)
    x = torch.randn(8, 5, 4, requires_grad=True)
    with FreezeWatch({"teacher": teacher}) as watch:
        for _ in range(2):
            teacher(x)
        state = torch.get_rng_state()
        (found,) = watch.drifts()
        again = watch.drifts()
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.kind, found.name) == ("dropout", "teacher")
    assert found.amount > 0.05
    assert "in train mode" in found.reason
    assert "% of their size" in found.reason
    assert again == [found]  # told by the same measurement
    if isinstance(teacher, Functional):
        assert (teacher.calls, teacher.seen) == (2, [1, 2])  # the measurement left no trace
    assert all(m.training for m in teacher.modules())
    assert hooks_on(teacher) == 0

    teacher = _teacher(kind).eval()
    with FreezeWatch({"teacher": teacher}) as watch:
        teacher(x)
    assert watch.drifts() == []


def test_the_size_of_the_effect_is_that_of_two_answers() -> None:
    """Dropout on a constant input of 1 gives 0 or 2: two answers differ by 2 at most."""
    with FreezeWatch({"drop": nn.ModuleList([scale := nn.Linear(64, 64, bias=False)])}) as watch:
        assert watch.drifts() == []
    nn.init.eye_(scale.weight)
    net = nn.Sequential(scale, nn.Dropout(0.5)).requires_grad_(False)
    with FreezeWatch({"net": net}) as watch:
        net(torch.ones(4, 64))
    assert watch.drifts()[0].amount == 2.0


def test_a_teacher_that_is_entered_by_a_method_of_its_own() -> None:
    """https://github.com/tianweiy/DMD2/issues/21: the teacher hangs in a module that is put into train mode."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

        def encode(self, x: Tensor) -> Tensor:
            return self.drop(self.layer(x))

    teacher = Teacher().requires_grad_(False)
    with FreezeWatch({"teacher": teacher}) as watch:
        teacher.encode(torch.randn(8, 4))
    (found,) = watch.drifts()
    assert found.kind == "dropout"
    assert "its dropout is on (teacher.drop)" in found.reason
    assert "changes what passes teacher.drop by" in found.reason


def test_train_turns_it_on_again_later() -> None:
    """https://github.com/pgniewko/gt-pyg/issues/112: a freeze that the next train() undoes."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).requires_grad_(False).eval()
    model = nn.ModuleDict({"net": net})
    with FreezeWatch({"net": net}) as watch:
        for step in range(7):
            if step == 6:
                model.train()
            net(torch.randn(8, 4))
    assert [d.kind for d in watch.drifts()] == ["dropout"]


def test_a_sampler_that_draws_in_eval_mode_too_has_no_dropout() -> None:
    """A frozen VAE samples; that is its work."""

    class Sampler(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            mean = super().forward(x)
            return mean + torch.randn_like(mean)

    sampler = Sampler(4, 3).requires_grad_(False)
    with FreezeWatch({"sampler": sampler}) as watch:
        sampler(torch.randn(8, 4))
    assert watch.drifts() == []


class Distil(L.LightningModule):
    """The teacher requires grad, and no optimiser has it."""

    def __init__(self, calm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(4, 3)
        self.teacher = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        if calm:
            self.teacher.eval()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.teacher(batch[0])
        return F.mse_loss(self.student(batch[0]), target)

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.student.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:FreezeAudit. nothing is frozen")
def test_the_callback_warns_of_teachers_and_never_raises() -> None:
    """https://github.com/clovaai/overhaul-distillation/issues/37: some mean it, so that it is no violation."""
    with pytest.warns(UserWarning, match=r"teacher is not still, by .*its dropout is on \(teacher\.1\)") as told:
        fit(Distil(calm=False), FreezeAudit(every_n_steps=1), batches=4)
    assert sum("is not still" in str(w.message) for w in told) == 1
    with pytest.warns(UserWarning, match=r"backbone is not still.*% of their size"):
        fit(Finetune("dropout"), FreezeAudit())
    module = Distil(calm=True)
    fit(module, FreezeAudit(every_n_steps=1))
    assert hooks_on(module) == 0


# ---- below rounding


def test_writes_below_rounding_are_no_drift() -> None:
    """https://github.com/huggingface/peft/pull/3166: merging an adapter and taking it out again rounds.

    With weights in bfloat16 that is a loss: https://github.com/KohakuBlueleaf/LyCORIS/issues/264.
    """
    torch.manual_seed(0)
    layer = nn.Linear(32, 32).requires_grad_(False)
    average, coarse = copy.deepcopy(layer), copy.deepcopy(layer).bfloat16()
    delta = torch.randn(32, 32) / 3
    with FreezeWatch({"layer": layer, "average": average, "coarse": coarse}) as watch:
        layer.weight.data += delta
        layer.weight.data -= delta
        with torch.no_grad():
            average.weight.mul_(0.999).add_(average.weight.clone() / 0.999, alpha=0.001)
            layer.bias.mul_(1 - 1e-9)
        assert not torch.equal(average.weight, layer.weight)
        assert watch.drifts() == []
        coarse.weight.data += delta
        coarse.weight.data -= delta
    assert [d.name for d in watch.drifts()] == ["coarse.weight"]


@pytest.mark.parametrize(
    ("before", "now", "amount"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 2**-19], 2**-19),
        ([1.0, 2.0], [1.0 + 2**-23, 2.0], 0.0),
        ([0.0, 1.0], [1e-4, 1.0], 1e-4),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("-inf"), 1.0], [float("-inf"), 1.5], 0.5),
        ([float("nan"), 1.0], [float("nan"), 1.5], 0.5),
    ],
)
def test_amounts_are_exact(before: list[float], now: list[float], amount: float) -> None:
    layer = nn.Linear(1, 2, bias=False).requires_grad_(False)
    layer.weight.data = torch.tensor(before)[:, None]
    with FreezeWatch({"layer": layer}) as watch:
        layer.weight.data.copy_(torch.tensor(now)[:, None])
    assert [d.amount for d in watch.drifts()] == ([pytest.approx(amount, rel=1e-6)] if amount else [])


def test_every_change_of_a_coarse_type_counts() -> None:
    """A bfloat16 number has 8 bits: the next one is a real change."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.data.fill_(1.0)
    counter = nn.Module()
    counter.register_buffer("count", torch.tensor(2**40))
    counter.register_buffer("mask", torch.tensor([True, False]))
    counter.register_buffer("phase", torch.tensor([1 + 1j]))
    with FreezeWatch({"layer": layer, "counter": counter}) as watch:
        layer.weight.data.fill_(1.0078125)
        counter.count += 1
        counter.mask[1] = True
        counter.phase *= 1j
    assert {d.name: d.amount for d in watch.drifts()} == {
        "layer.weight": 0.0078125,
        "counter.count": 1.0,
        "counter.mask": 1.0,
        "counter.phase": 2.0,
    }


def test_the_gap_leaves_what_the_module_keeps_in_python() -> None:
    module = Functional()
    assert train_eval_gap(module, torch.randn(8, 4)) > 0
    assert (module.calls, module.seen) == (0, [])
