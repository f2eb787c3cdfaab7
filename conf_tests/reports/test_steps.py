"""Reports of parameters that nobody steps, that one optimiser steps twice, or that never move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from conf_tests.audit.test_lightning import fit
from conf_tests.installed import step_hooks
from stopgrad import FlowContract, audit
from stopgrad.lightning import FlowAudit
from stopgrad.museum import exhibits
from stopgrad.steps import Finding, StepWatch

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Train = Callable[[], None]


def _watched(modules: Any, optimizers: list[Optimizer], step: Train, steps: int = 3) -> dict[str, Finding]:
    with StepWatch(modules, optimizers) as watch:
        for _ in range(steps):
            step()
    assert step_hooks() == 0
    found = {finding.name: finding for finding in watch.findings()}
    assert len(found) == len(watch.findings())
    assert found.keys() <= exhibits().keys()
    return found


def _step(optimizer: Optimizer, loss: Callable[[], Tensor]) -> Train:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


# ---- nobody steps it


def _resized() -> tuple[nn.ModuleDict, Optimizer]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 1)})
    optimizer = SGD(net.parameters(), 0.1)
    net["embed"] = nn.Embedding(6, 4)
    return net, optimizer


def _loss_of(net: nn.ModuleDict) -> Callable[[], Tensor]:
    return lambda: net["head"](net["embed"](torch.arange(5))).square().mean()


def test_the_optimiser_holds_the_parameter_of_before() -> None:
    """https://github.com/huggingface/transformers/pull/3532: the optimiser is made, and then the embedding resized.

    https://github.com/pytorch/pytorch/issues/14467 wishes that the optimiser warned.
    """
    net, optimizer = _resized()
    (found,) = _watched(net, [optimizer], _step(optimizer, _loss_of(net))).values()
    assert (found.name, found.evidence) == ("unstepped_parameter", ("embed.weight",))
    assert "no optimiser (SGD) holds it" in found.message
    assert "SGD holds others that are none of the model's, of shape 5x4" in found.message
    assert found.fix.startswith("make the optimiser after the last change")


def test_a_standalone_audit_knows_the_optimisers() -> None:
    net, optimizer = _resized()
    told = pytest.warns(UserWarning, match=r"a gradient arrives at embed.weight, and no optimiser \(SGD\) holds it")
    with told, audit(net, optimizers=[optimizer]) as a:
        a.loss("loss", _loss_of(net)())
    assert [f.name for f in a.findings()] == ["unstepped_parameter"]
    with audit(net) as a:
        a.loss("loss", _loss_of(net)())
    assert a.findings() == []
    with audit(net, optimizers=[optimizer, SGD(net["embed"].parameters(), 0.1)]) as a:
        a.loss("loss", _loss_of(net)())
    assert a.findings() == []


class CentreLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(1, 3))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.centres).square().mean()


def test_a_loss_with_weights_of_its_own() -> None:
    """https://github.com/KaiyangZhou/pytorch-center-loss/issues/22: the centres are in no optimiser.

    https://github.com/zjunlp/HVPNeT/issues/5: two layers of which the list of parameters did not know.
    """
    torch.manual_seed(0)
    net, criterion = nn.Linear(4, 3), CentreLoss()
    optimizer = Adam(net.parameters())
    step = _step(optimizer, lambda: criterion(net(X)))
    (found,) = _watched({"net": net, "criterion": criterion}, [optimizer], step).values()
    assert found.evidence == ("criterion.centres",)
    assert "requires_grad_(False)" in found.fix
    both = Adam([*net.parameters(), *criterion.parameters()])
    assert _watched({"net": net, "criterion": criterion}, [both], _step(both, lambda: criterion(net(X)))) == {}


class PlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4), {"inner": [nn.Linear(4, 4)]}]
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[1]["inner"][0](self.layers[0](x)))  # pyright: ignore


def test_layers_in_a_plain_list() -> None:
    """https://github.com/ikostrikov/pytorch-meta-optimizer/issues/11: ``model.parameters()`` does not know them."""
    torch.manual_seed(0)
    net = PlainList()
    optimizer = SGD(net.parameters(), 0.1)
    (found,) = _watched(net, [optimizer], _step(optimizer, lambda: net(X).square().mean())).values()
    assert set(found.evidence) == {
        *("layers[0].weight", "layers[0].bias"),
        *("layers[1]['inner'][0].weight", "layers[1]['inner'][0].bias"),
    }
    assert "nn.ModuleList" in found.fix


def test_what_moves_by_hand_or_by_an_optimiser_nobody_told_of_is_stepped() -> None:
    """Updates by hand, a second optimiser that is seen to step, a frozen part and a late group are no findings."""
    torch.manual_seed(0)
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("told", "seen", "hand", "late", "frozen")})
    net["frozen"].requires_grad_(False)
    told, seen = SGD(net["told"].parameters(), 0.1), SGD(net["seen"].parameters(), 0.1)
    other = SGD([nn.Parameter(torch.ones(1))], 0.1)  # of another model

    def step() -> None:
        net.zero_grad()
        sum(layer(X).square().mean() for layer in net.values()).backward()  # pyright: ignore
        if len(told.param_groups) < 2:
            told.add_param_group({"params": net["late"].parameters()})
        for optimizer in (told, seen, other):
            optimizer.step()
        with torch.no_grad():
            for p in net["hand"].parameters():
                p -= 0.1 * p.grad  # pyright: ignore

    assert _watched(net, [told], step) == {}


def test_an_optimiser_that_is_never_asked_to_step() -> None:
    """Two optimisers, and one call of step: the other's gradients come and go. Five to one is no finding."""
    torch.manual_seed(0)
    nets = {"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)}
    for rare in (False, True):
        generator, critic = (Adam(net.parameters()) for net in nets.values())
        calls = []

        def step(rare: bool = rare, calls: list[int] = calls, both: Any = (generator, critic)) -> None:
            for optimizer in both:
                optimizer.zero_grad()
            nets["critic"](nets["generator"](X)).square().mean().backward()
            both[1].step()
            calls.append(1)
            if rare and len(calls) % 5 == 0:
                both[0].step()

        assert _watched(nets, [generator, critic], step, steps=5) == {}
        found = _watched(nets, [generator, critic], step, steps=9)
        assert list(found) == ([] if rare else ["unstepped_parameter"])
        if not rare:
            assert found["unstepped_parameter"].evidence == ("generator.weight", "generator.bias")
            assert "Adam, which holds it, did not step once while another" in found["unstepped_parameter"].message


class Resized(L.LightningModule):
    FLOW = FlowContract({"loss": {"embed": "open", "head": "open"}})

    def __init__(self, manual: bool = False, resize: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = not manual
        self.embed, self.head, self.resize = nn.Embedding(5, 4), nn.Linear(4, 1), resize

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = self.head(self.embed(torch.arange(5))).square().mean()
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(loss)
        optimizer.step()
        self.zero_grad()
        return None

    def configure_optimizers(self) -> Optimizer:
        optimizer = SGD(self.parameters(), lr=0.1)
        if self.resize:
            self.embed = nn.Embedding(6, 4)
        return optimizer


@pytest.mark.parametrize("manual", [False, True])
def test_the_callback_warns_once(manual: bool) -> None:
    """https://github.com/hpcaitech/ColossalAI/issues/5539 under Lightning: parameters made after the optimiser."""
    callback = FlowAudit(every_n_steps=1)
    with pytest.warns(UserWarning, match="a gradient arrives at embed.weight, and no optimiser") as told:
        fit(Resized(manual), callback)
    assert sum("no optimiser" in str(w.message) for w in told) == 1
    assert [f.name for f in callback.findings] == ["unstepped_parameter"]
    callback = FlowAudit(every_n_steps=1)
    fit(Resized(manual, resize=False), callback)
    assert callback.findings == []


def test_a_leak_that_the_contract_forbids_is_told_as_such_alone() -> None:
    """A frozen net that is reached is the contract's business: nobody is asked to step it."""
    callback = FlowAudit(contract=FlowContract({"loss": {"head": "open", "embed": "blocked"}}), on_violation="warn")
    with pytest.warns(UserWarning, match="loss reaches embed") as told:
        fit(Resized(), callback)
    assert callback.findings == []
    assert not any("no optimiser" in str(w.message) for w in told)


# ---- one optimiser steps it twice


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("make", [Adam, lambda p: SGD(p, 0.1)])
def test_a_parameter_that_is_listed_twice(make: Callable[[Any], Optimizer]) -> None:
    """https://github.com/pytorch/pytorch/issues/40967: twice within one group only warns, and steps twice.

    https://github.com/thu-ml/tianshou/issues/395: actor and critic of one trunk, their lists joined.
    """
    torch.manual_seed(0)
    trunk = nn.Linear(4, 4)
    nets = {"actor": nn.Sequential(trunk, nn.Linear(4, 2)), "critic": nn.Sequential(trunk, nn.Linear(4, 1))}
    parameters = [p for net in nets.values() for p in net.parameters()]

    def loss() -> Tensor:
        return nets["actor"](X).square().mean() + nets["critic"](X).square().mean()

    optimizer = make(parameters)
    (found,) = _watched(nets, [optimizer], _step(optimizer, loss)).values()
    assert found.name == "listed_twice"
    assert set(found.evidence) == {"actor.0.weight = critic.0.weight", "actor.0.bias = critic.0.bias"}
    assert "2 times" in found.message
    assert _watched(nets, [], _step(optimizer, loss))["listed_twice"] == found  # seen to step, though not handed over
    optimizer = make(list(dict.fromkeys(parameters)))
    assert _watched(nets, [optimizer], _step(optimizer, loss)) == {}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_tied_weights_handed_over_layer_by_layer() -> None:
    """https://github.com/deepspeedai/DeepSpeed/issues/195: tied tensors are two entries of one list."""
    embed, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embed.weight
    optimizer = SGD([embed.weight, head.weight], 0.1)
    told = pytest.warns(UserWarning, match="SGD lists embed.weight = head.weight 2 times")
    with told, audit({"embed": embed, "head": head}, optimizers=[optimizer]) as a:
        a.loss("lm", F.cross_entropy(head(embed(torch.arange(7))), torch.arange(7)))


class Twice(Resized):
    def configure_optimizers(self) -> Optimizer:
        return Adam([*self.parameters(), *self.head.parameters()])


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_the_callback_tells_what_is_listed_twice() -> None:
    """https://github.com/qinenergy/corda/issues/13: torch's warning is all that one sees."""
    callback = FlowAudit()
    with pytest.warns(UserWarning, match="Adam lists head.weight, head.bias 2 times"):
        fit(Twice(resize=False), callback)


# ---- it never moves


class Filters(nn.Module):
    def __init__(self, blocked: bool) -> None:
        super().__init__()
        self.filters, self.head, self.blocked = nn.Linear(4, 4), nn.Linear(4, 1), blocked

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.blocked):
            y = self.filters(x)
        return self.head(y)


def test_filters_under_no_grad() -> None:
    """https://github.com/denfed/leaf-audio-pytorch/issues/3: the filters require grad, and stay as they were."""
    torch.manual_seed(0)
    for blocked in (True, False):
        net = Filters(blocked)
        optimizer = Adam(net.parameters())
        found = _watched(net, [optimizer], _step(optimizer, lambda net=net: net(X).square().mean()))
        assert set(found) == ({"never_moved"} if blocked else set())
        if blocked:
            assert found["never_moved"].evidence == ("filters.weight", "filters.bias")
            assert "bias requires grad and never moved in 3 steps of Adam: no gradient" in found["never_moved"].message


def test_a_dead_unit_gets_zeros() -> None:
    """A clamp that is saturated from the beginning sends zeros, and zeros move nothing."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"std": nn.Linear(4, 1), "mean": nn.Linear(4, 1)})
    nn.init.constant_(net["std"].bias, 30.0)
    optimizer = SGD(net.parameters(), 0.1)
    step = _step(optimizer, lambda: (net["std"](X).clamp(-5, 2) + net["mean"](X)).square().mean())
    (found,) = _watched(net, [optimizer], step).values()
    assert (found.name, found.evidence) == ("never_moved", ("std.weight", "std.bias"))
    assert "its gradient was zeros" in found.message


def test_steps_that_round_away() -> None:
    """https://github.com/pytorch/ao/pull/1124: weights in bfloat16 do not take a step of a thousandth of their size."""
    torch.manual_seed(0)
    net = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(net.weight)
    for rate, moves in ((1e-4, False), (1e-1, True)):
        optimizer = SGD(net.parameters(), rate)
        step = _step(optimizer, lambda: net(X.bfloat16()).float().square().mean())
        found = _watched({"net": net}, [optimizer], step)
        assert [f.name for f in found.values()] == ([] if moves else ["never_moved"])
        if not moves:
            assert "too small to change a bit of it" in found["never_moved"].message


def test_what_is_meant_to_stand_still_is_no_finding() -> None:
    """Frozen, a learning rate of 0, a first step of a warm-up, an optimiser that never steps."""
    torch.manual_seed(0)
    net = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("frozen", "rate", "trained", "waits")})
    net["frozen"].requires_grad_(False)
    rates = {"frozen": 1.0, "rate": 0.0, "trained": 1.0}
    groups = [{"params": net[name].parameters(), "lr": rate} for name, rate in rates.items()]
    optimizer, waits = SGD(groups), SGD(net["waits"].parameters(), 0.1)

    def loss() -> Tensor:
        return sum(layer(X).square().mean() for layer in net.values())  # pyright: ignore

    assert _watched(net, [optimizer, waits], _step(optimizer, loss)) == {}
    optimizer = SGD(net["trained"].parameters(), 1e-12)
    assert _watched(net["trained"], [optimizer], _step(optimizer, loss), steps=1) == {}


class Unused(Resized):
    def __init__(self, detached: bool) -> None:
        super().__init__(resize=False)
        self.extra = nn.Linear(4, 4)
        self.detached = detached

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        y = self.embed(torch.arange(5))
        return self.head(y + self.extra(y).detach() if self.detached else y + self.extra(y)).square().mean()


def test_the_callback_tells_at_the_end_what_never_moved() -> None:
    """https://github.com/state-spaces/s4/issues/26: parameters that are used in forward and get no gradient."""
    callback = FlowAudit()
    with pytest.warns(UserWarning, match=r"extra.weight, extra.bias .* never moved in 3 steps of SGD: no gradient"):
        fit(Unused(detached=True), callback)
    assert [f.evidence for f in callback.findings] == [("extra.weight", "extra.bias")]
    callback = FlowAudit()
    fit(Unused(detached=False), callback)
    assert callback.findings == []


def test_one_batch_proves_nothing() -> None:
    callback = FlowAudit()
    fit(Unused(detached=True), callback, batches=1)
    assert callback.findings == []


def test_the_watch_changes_nothing() -> None:
    weights = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        optimizer = Adam(net.parameters())
        step = _step(optimizer, lambda net=net: net(X).square().mean())
        if watched:
            _watched(net, [optimizer], step)
        else:
            for _ in range(3):
                step()
        weights.append(net.weight.detach().clone())
    assert torch.equal(*weights)
