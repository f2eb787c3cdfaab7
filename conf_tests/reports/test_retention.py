"""Reports of graphs that are kept: where they hang, what grows, and what a search has no time for."""

from __future__ import annotations

import functools
import gc
import logging
import types
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf_tests.audit.test_lightning import fit
from stopgrad.lightning import RetentionAudit
from stopgrad.retention import GraphRetained, growth, kept_graphs

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
X = torch.randn(2, 4)
HISTORY: list[Tensor] = []


def _paths(roots: dict[str, Any]) -> list[str]:
    return [kept.path for kept in kept_graphs(roots)]


class Remembers(nn.Module):
    """It keeps what it has computed, for whoever may want it."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)
        self.activity: Tensor | None = None
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.activity = y.detach() if self.detached else y
        return self.b(y)


@pytest.mark.parametrize("detached", [False, True])
def test_an_activity_on_the_module_is_one_live_graph_and_does_not_grow(detached: bool) -> None:
    """https://github.com/growingnet/gromo/issues/135: ``self.activity`` without detach."""
    net = Remembers(detached)
    net(X)
    before = kept_graphs({"net": net}, exclude=net.parameters())
    net(X)
    now = kept_graphs({"net": net}, exclude=net.parameters())
    assert [(k.path, k.tensors, k.spent) for k in now] == ([] if detached else [("net.activity", 1, False)])
    assert growth(before, now) == []


class Store:
    """A hook that is an object."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.outputs.append(output)

    def method(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.outputs.append(output)


def _into(store: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    store.append(output)


def _closure() -> Any:
    kept = []
    return lambda module, args, output: kept.append(output)


def _default(module: nn.Module, args: Any, output: Tensor, *, kept: list[Tensor] = []) -> None:  # noqa: B006
    kept.append(output)


def _global(module: nn.Module, args: Any, output: Tensor) -> None:
    HISTORY.append(output)


def _attribute(module: nn.Module, args: Any, output: Tensor) -> None:
    _attribute.kept.append(output)  # pyright: ignore[reportFunctionMemberAccess]


_attribute.kept = []  # pyright: ignore[reportFunctionMemberAccess]
HERE = __name__


@pytest.mark.parametrize(
    ("hook", "path"),
    [
        (Store(), "net.b._forward_hooks[...].outputs"),
        (Store().method, "net.b._forward_hooks[...].outputs"),
        (functools.partial(_into, []), "net.b._forward_hooks[...]"),
        (_closure(), "net.b._forward_hooks[...].kept"),
        (_default, "net.b._forward_hooks[...].kept"),
        (_global, f"{HERE}.HISTORY"),
        (_attribute, "net.b._forward_hooks[...].kept"),
    ],
    ids=["object", "method", "partial", "closure", "default", "global", "attribute"],
)
def test_what_a_hook_keeps_is_found_from_the_module(hook: Any, path: str) -> None:
    """https://github.com/pytorch/opacus/issues/176: a hook keeps the activations of every forward."""
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 1)})
    handle = net["b"].register_forward_hook(hook)
    net["b"](net["a"](X))
    before = kept_graphs({"net": net})
    for _ in range(3):
        net["b"](net["a"](X))
    now = kept_graphs({"net": net})
    handle.remove()
    HISTORY.clear()
    assert [(k.path, k.tensors) for k in now] == [(path, 4)]
    (told,) = growth(before, now)
    assert "it grew by 3 tensors" in told
    assert kept_graphs({"net": net}) == []


@pytest.mark.filterwarnings("ignore:Using backward")  # with create_graph=True: said once a process, perhaps before
def test_hooks_on_parameters_and_gradients_with_a_graph() -> None:
    """https://github.com/pytorch/pytorch/issues/82528: gradients of ``create_graph=True`` keep a graph."""
    net, kept = nn.Linear(4, 1), []
    net(X).square().sum().backward(create_graph=True)
    net.bias.register_hook(lambda grad: kept.append(grad))
    torch.autograd.grad(net(X).square().sum(), net.bias, create_graph=True)
    assert _paths({"net": net}) == ["net.bias._backward_hooks[...].kept", "net.bias.grad", "net.weight.grad"]
    net.zero_grad()
    kept.clear()
    assert _paths({"net": net}) == []


@dataclass
class Step:
    number: int
    loss: Tensor


@dataclass
class Journal:
    steps: list[Step] = field(default_factory=list)


class Slotted:
    __slots__ = ("inner", "unset")

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Node:
    def __init__(self, value: Tensor, following: Any) -> None:
        self.value, self.following = value, following


class Track:
    features: ClassVar[deque[Tensor]] = deque(maxlen=50)  # of the class, not of the track

    @staticmethod
    @functools.cache
    def embed(scale: int) -> Tensor:
        return torch.ones(3, requires_grad=True) * scale


def _live() -> Tensor:
    return torch.ones(3, requires_grad=True) * 2


def _linked(length: int) -> Node | None:
    node = None
    for _ in range(length):
        node = Node(_live(), node)
    return node


@pytest.mark.parametrize(
    ("build", "path", "count"),
    [
        (lambda: types.SimpleNamespace(a=types.SimpleNamespace(b=[_live()])), "x.a.b", 1),
        (lambda: Journal([Step(i, _live()) for i in range(3)]), "x.steps.loss", 3),
        (lambda: Slotted({"inner": Slotted(_live())}), "x.inner['inner'].inner", 1),
        (lambda: OrderedDict({i: (_live(),) for i in range(4)}), "x[...]", 4),
        (lambda: _linked(5), "x.following.value", 4),
        (lambda: functools.partial(print, sep=_live()), "x['sep']", 1),
        (lambda: {"a": {frozenset([_live()]): {1}}, "b": {_live()}}, "x['b']", 1),
        (lambda: [].append, None, 0),
        (lambda: [_live()].append, "x", 1),
        (lambda: weakref.ref(Journal([Step(0, _live())])), None, 0),
        (lambda: Track() if not Track.features.append(_live()) else None, "x.features", 1),
        (lambda: Track() if Track.embed(3) is not None else None, "x.embed(cache)[...]", 1),
    ],
)
def test_whatever_it_hangs_on_it_is_found(build: Any, path: str | None, count: int) -> None:
    """Objects in objects, dataclasses, slots, linked lists, bound methods, attributes of a class, caches.

    https://github.com/ifzhang/FairMOT/issues/348: a deque of features that belongs to the class;
    https://github.com/Metta-AI/metta/pull/1139: states with a graph in an experience buffer.
    """
    Track.features.clear()
    Track.embed.cache_clear()
    item = build()
    gc.collect()
    found = {kept.path: kept.tensors for kept in kept_graphs({"x": item})}
    assert found.get(path or "x", 0) == count
    Track.features.clear()
    Track.embed.cache_clear()


def test_cycles_libraries_and_dead_references_do_no_harm() -> None:
    knot: dict[str, Any] = {"logger": logging.getLogger(), "torch": torch, "type": nn.Linear, "here": HERE}
    other = Journal()
    knot |= {
        "self": knot,
        "weak": weakref.ref(other),
        "proxy": weakref.proxy(other),
        "script": torch.jit.script(nn.ReLU()),
    }
    del other
    gc.collect()
    assert kept_graphs({"knot": knot}) == []


def test_a_dict_with_a_key_for_every_step_grows() -> None:
    """https://github.com/pytorch/pytorch/pull/6017: who remembers all losses remembers all graphs."""
    losses: dict[str, Tensor] = {"step 0": _live()}
    before = kept_graphs({"module": losses})
    losses |= {"step 1": _live()}
    once = kept_graphs({"module": losses})
    losses |= {"step 2": _live(), "step 3": _live()}
    twice = kept_graphs({"module": losses})
    assert growth(before, once) == []  # a value that is logged for the first time is no growth
    (told,) = growth(once, twice)
    assert "module has 2 such entries more than before" in told


def test_the_search_ends_in_time_and_says_where() -> None:
    near, far = [_live()], types.SimpleNamespace(deep=[[_live()] for _ in range(300)])
    with pytest.warns(UserWarning, match=r"0 s were not enough; not searched: near and what comes after it"):
        assert kept_graphs({"near": near, "far": far}, seconds=0) == []
    assert _paths({"near": near, "far": far}) == ["far.deep", "near"]
    assert [k.path for k in kept_graphs({"near": near, "far": far}, leave=[far])] == ["near"]


class Keeps(L.LightningModule):
    def __init__(self, keep: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.keep = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), keep
        self.meter = types.SimpleNamespace(history=deque(maxlen=1000))
        if keep == "hook":
            self.net[0].register_forward_hook(Store())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self.net(batch[0]), batch[0].sum(1, keepdim=True))
        if self.keep == "object":
            self.meter.history.append(loss)
        if self.keep == "global":
            HISTORY.append(loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Collects(L.Callback):
    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.seen[trainer.global_step] = loss


@pytest.mark.parametrize(
    ("keep", "place"),
    [
        ("object", r"module\.meter\.history"),
        ("hook", r"module\.net\.0\._forward_hooks\[\.\.\.\]\.outputs"),
        ("global", rf"{HERE}\.HISTORY"),
        ("callback", r"Collects\[2\]\.seen\[\.\.\.\]"),
    ],
)
def test_the_callback_looks_in_the_first_batches(keep: str, place: str) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/1510: outputs that are kept for the whole epoch.

    A run of 4 batches is enough, and the second callback of a kind is searched like the first.
    """
    HISTORY.clear()
    callbacks: list[L.Callback] = [Collects()] if keep == "callback" else []
    idle = [type("Collects", (L.Callback,), {})()]
    with pytest.raises(GraphRetained, match=f"{place} keeps 4 tensors .* it grew by 2 tensors"):
        fit(Keeps(keep), *idle, *callbacks, RetentionAudit(), batches=16)
    HISTORY.clear()
    callback = RetentionAudit()
    fit(Keeps("nothing"), callback, batches=16)
    assert callback.kept == []


def test_the_callback_says_once_that_it_had_no_time() -> None:
    callback = RetentionAudit(every_n_steps=1, seconds=0)
    with pytest.warns(UserWarning, match="0 s were not enough; not searched: module") as told:
        fit(Keeps("object"), callback, batches=8)
    assert sum("were not enough" in str(w.message) for w in told) == 1
    assert callback.left == "module"
