"""Reports of forwards that are run again, in a backward, a second thread or a transform: each strategy still holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from stopgrad import Boundary, audit
from stopgrad.cuts.frozen import is_any_held

CUTS = ["detach", "data", "no_grad", "inference_mode", "freeze"]
PASSING = {"none": 1.0, "scale:0.5": 0.5, "reverse:2": -2.0}
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:.*jit.script")


def _x() -> Tensor:
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Nets:
    """An actor, and a critic with BatchNorm and dropout, so that a second forward leaves its traces."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.actor = nn.Linear(3, 2).double()
        layers = [nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
        self.critic = nn.Sequential(*layers).double()

    def grads(self, net: nn.Module) -> list[Tensor | None]:
        return [p.grad for p in net.parameters()]


class Run(nn.Module):
    """A net under a checkpoint of some kind."""

    def __init__(self, net: nn.Sequential, how: Callable[[nn.Sequential, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.net, x)


def _within(net: nn.Sequential, x: Tensor, outer: bool, inner: bool) -> Tensor:
    def twice(x: Tensor) -> Tensor:
        return net[3:](checkpoint(net[:3], x, use_reentrant=inner))

    return checkpoint(twice, x, use_reentrant=outer)  # pyright: ignore[reportReturnType]


def _context() -> tuple[Any, Any]:
    return torch.enable_grad(), torch.enable_grad()


CHECKPOINTS: dict[str, Callable[[nn.Sequential, Tensor], Any]] = {
    "reentrant": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "not reentrant": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "by keyword": lambda net, x: checkpoint(net, input=x, use_reentrant=False),
    "with contexts": lambda net, x: checkpoint(net, x, use_reentrant=False, context_fn=_context),
    "sequence, reentrant": lambda net, x: checkpoint_sequential(net, 3, x, use_reentrant=True),
    "sequence": lambda net, x: checkpoint_sequential(net, 3, x, use_reentrant=False),
    "nested": lambda net, x: _within(net, x, False, False),
    "nested, reentrant": lambda net, x: _within(net, x, True, True),
    "reentrant in another": lambda net, x: _within(net, x, False, True),
    "another in reentrant": lambda net, x: _within(net, x, True, False),
}


# ---- a checkpoint inside the call


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_frozen_for_the_call_alone(how: str) -> None:
    """https://github.com/facebookresearch/fairscale/pull/787 and https://github.com/OpenBMB/BMTrain/pull/8: what
    requires grad is asked again when a block is run again. Then the critic is thawed already.

    The actor's gradient is, bit for bit, what it is without a checkpoint.
    """
    expected: list[Tensor | None] = []
    for run in (None, CHECKPOINTS[how]):
        nets = Nets()
        critic = nets.critic if run is None else Run(nets.critic, run)
        torch.manual_seed(5)  # the dropout's
        (-Boundary("critic", "freeze")(critic, nets.actor(_x())).mean()).backward()
        assert nets.grads(nets.critic) == [None] * 6
        assert all(p.requires_grad for p in nets.critic.parameters())
        assert not is_any_held()
        found = nets.grads(nets.actor)
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # pyright: ignore


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_the_audit_says_what_the_backward_does(how: str) -> None:
    """As https://github.com/huggingface/trl/issues/4314 and https://github.com/huggingface/trl/issues/2514: texts of a
    recomputation that went another way than the forward.
    """
    nets = Nets()
    with audit({"actor": nets.actor, "critic": nets.critic}) as a:
        crossed = Boundary("critic", "freeze")(Run(nets.critic, CHECKPOINTS[how]), nets.actor(_x()))
        a.loss("actor_loss", crossed.mean()).backward()
    assert a.matrix()["actor_loss", "actor"].state == "open"
    assert a.matrix()["actor_loss", "critic"].state == "blocked"
    assert nets.grads(nets.critic) == [None] * 6
    assert None not in nets.grads(nets.actor)


@pytest.mark.parametrize("reentrant", [True, False])
def test_one_module_frozen_and_live_in_one_loss(reentrant: bool) -> None:
    """A checkpoint made outside of the frozen call is run again live: the critic's gradient is the plain one."""

    def grads(checkpointed: bool) -> list[Tensor | None]:
        nets = Nets()
        nets.critic[2] = nn.Identity()
        how = CHECKPOINTS["reentrant" if reentrant else "not reentrant"]
        critic: nn.Module = Run(nets.critic, how) if checkpointed else nets.critic
        x = nets.actor(_x())
        (critic(x.detach().requires_grad_()).square().mean() - Boundary("c", "freeze")(critic, x).mean()).backward()
        return nets.grads(nets.critic) + nets.grads(nets.actor)

    plain, again = grads(False), grads(True)
    assert None not in plain
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))  # pyright: ignore


def test_a_second_backward_and_an_exception_in_the_second_forward() -> None:
    nets = Nets()
    calls: list[bool] = []

    def fails_the_third_time(net: nn.Sequential, x: Tensor) -> Any:
        def run(x: Tensor) -> Tensor:
            calls.append(any(p.requires_grad for p in net.parameters()))
            if len(calls) == 3:
                raise ZeroDivisionError
            return net(x)

        return checkpoint(run, x, use_reentrant=False)

    loss = Boundary("critic", "freeze")(Run(nets.critic, fails_the_third_time), nets.actor(_x())).mean()
    loss.backward(retain_graph=True)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    assert calls == [False] * 3
    assert all(p.requires_grad for p in nets.critic.parameters())
    assert not is_any_held()


def test_freezes_inside_each_other_are_both_held() -> None:
    torch.manual_seed(0)
    first, second, third = (nn.Linear(3, 3) for _ in range(3))
    seen = []

    def run(x: Tensor) -> Tensor:
        seen.append([net.weight.requires_grad for net in (first, second, third)])
        return third(second(first(x))).sin()

    inner = Boundary("inner", "freeze").over(second)
    outer = Boundary("outer", "freeze").over(first)
    x = torch.ones(1, 3, requires_grad=True)
    outer(lambda: inner(lambda: checkpoint(run, x, use_reentrant=False))).sum().backward()  # pyright: ignore
    assert seen == [[False, False, True]] * 2
    assert [net.weight.grad is None for net in (first, second, third)] == [True, True, False]


# ---- a call inside a checkpoint


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("strategy", [*CUTS, *PASSING])
def test_every_strategy_inside_a_checkpoint(strategy: str, reentrant: bool) -> None:
    """What crosses is cut, or gated, the second time as the first: the same gradients, bit for bit."""

    def grads(checkpointed: bool) -> list[Tensor | None]:
        nets = Nets()
        nets.critic[2] = nn.Identity()
        boundary = Boundary("h", strategy)

        def loss(x: Tensor) -> Tensor:
            crossed = boundary(nets.critic, x)
            return (x.sum() + crossed).sum() if strategy == "inference_mode" else (x * crossed).sum()

        x = nets.actor(_x())
        made: Any = checkpoint(loss, x, use_reentrant=reentrant) if checkpointed else loss(x)
        made.backward()
        return nets.grads(nets.critic) + nets.grads(nets.actor)

    plain, again = grads(False), grads(True)
    assert [g is None for g in plain] == [strategy in CUTS] * 6 + [False] * 2
    assert all(a is b or torch.equal(a, b) for a, b in zip(plain, again, strict=True))  # pyright: ignore


# ---- threads


def _in_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(timeout=60)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_the_backward_of_another_thread(how: str) -> None:
    """https://github.com/pytorch/pytorch/issues/18333: a graph is handed to a thread, which runs it backwards."""
    nets = Nets()
    loss = Boundary("critic", "freeze")(Run(nets.critic, CHECKPOINTS[how]), nets.actor(_x())).mean()
    _in_thread(loss.backward)
    assert nets.grads(nets.critic) == [None] * 6
    assert None not in nets.grads(nets.actor)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_threads_that_freeze_one_module(order: tuple[int, int]) -> None:
    """https://github.com/pytorch/pytorch/issues/67887: what is shared by two threads. The last to leave thaws it."""
    net, x = nn.Linear(3, 3), torch.ones(1, 3)
    inside, go = ([threading.Event(), threading.Event()] for _ in range(2))

    def slow(i: int) -> Tensor:
        inside[i].set()
        assert go[i].wait(60)
        return Boundary("live", "none")(net, x)  # not refused: this thread has frozen it too

    with ThreadPoolExecutor(2) as pool:
        calls = []
        for i in range(2):
            calls.append(pool.submit(Boundary("v", "freeze").over(net), slow, i))
            assert inside[i].wait(60)
        for i in order:
            assert not net.weight.requires_grad
            go[i].set()
            assert not calls[i].result(timeout=60).requires_grad
    assert net.weight.requires_grad
    assert not is_any_held()


@pytest.mark.parametrize("strategy", PASSING)
def test_a_live_call_beside_a_frozen_one_is_refused(strategy: str) -> None:
    net, other, x = nn.Linear(3, 3), nn.Linear(3, 3), torch.ones(1, 3)

    def meanwhile(x: Tensor) -> Tensor:
        live = Boundary("critic", strategy)
        words = rf"^stop.critic={strategy}: another thread has frozen Linear for a call, [^\n]*$"
        with pytest.raises(RuntimeError, match=words):
            _in_thread(lambda: live(net, x))
        with pytest.raises(RuntimeError, match=words):
            _in_thread(lambda: live.over(other, net)(lambda: net(x)))
        assert _in_thread(lambda: live(other, x)).requires_grad
        assert not _in_thread(lambda: Boundary("critic", "detach")(net, x)).requires_grad
        assert not live(net, x).requires_grad  # in this thread it is meant
        return net(x)

    Boundary("v", "freeze").over(net)(meanwhile, x)
    assert Boundary("critic", strategy)(net, x).requires_grad


# ---- torch.func


class Consumer(nn.Module):
    """What the producer makes crosses the boundary and is used; all parameters can be handed over from outside."""

    def __init__(self, strategy: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.producer = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.head = nn.Linear(2, 1).double()
        self.boundary = Boundary("v", strategy)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.boundary(self.producer, x)).sin().sum()

    def loss(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self, parameters, (x,))

    def held(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters()}


def _norm(tree: dict[str, Tensor], part: str) -> float:
    return sum(t.abs().sum().item() for name, t in tree.items() if name.startswith(part))


TRANSFORMS: dict[str, Callable[[Consumer, dict[str, Tensor], Tensor], dict[str, Tensor]]] = {
    "grad": lambda net, held, x: grad(net.loss)(held, x),
    "jacfwd": lambda net, held, x: jacfwd(net.loss)(held, x),
    "vmap of grad": lambda net, held, x: vmap(grad(net.loss), (None, 0))(held, x),
    "grad of vmap": lambda net, held, x: grad(lambda p: vmap(lambda row: net.loss(p, row))(x).sum())(held),
    "jvp": lambda net, held, x: {
        name: jvp(lambda t, name=name: net.loss({**held, name: t}, x), (t,), (torch.ones_like(t),))[1]
        for name, t in held.items()
    },
    "fast weights": lambda net, held, x: _by_fast_weights(net, held, x),
}


def _by_fast_weights(net: Consumer, held: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in held.items()}
    loss = net.loss({name: t * 1.0 for name, t in leaves.items()}, x)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(held[name]) if g is None else g for name, g in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("strategy", ["detach", "no_grad", "freeze", *PASSING])
def test_under_transforms(strategy: str, transform: str) -> None:
    """https://github.com/pytorch/pytorch/issues/128600: forwards, no_grad stops nothing. That of a boundary does."""
    net, plain = Consumer(strategy), Consumer("none")
    found, live = (TRANSFORMS[transform](each, each.held(), _x()) for each in (net, plain))
    assert _norm(live, "producer") > 0
    assert _norm(found, "head") == _norm(live, "head") > 0
    for name in net.held():
        if name.startswith("producer"):
            factor = PASSING.get(strategy, 0.0)
            torch.testing.assert_close(found[name], torch.zeros_like(found[name]) + factor * live[name])
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("strategy", "factor"), [("detach", 0), ("no_grad", 0), ("freeze", 1), ("none", 1)])
def test_what_comes_in_by_an_argument(strategy: str, factor: int) -> None:
    """``freeze`` lets a gradient through to its arguments, forwards as well as backwards."""
    net, x = Consumer(strategy), _x()
    (expected,) = torch.autograd.grad(Consumer("none")(x.requires_grad_()), x)
    assert torch.equal(grad(net)(x), factor * expected)
    _, pushed = jvp(net, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(pushed, factor * expected.sum())
    rows = vmap(lambda row: net(row))(x.detach())
    torch.testing.assert_close(rows, torch.stack([net(row) for row in x.detach()]))


def test_forward_derivatives_outside_of_transforms() -> None:
    """https://github.com/pytorch/pytorch/issues/78961: no_grad has no effect on a dual tensor."""
    net = Consumer("no_grad")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(_x(), torch.ones_like(_x()))
        assert forward_ad.unpack_dual(net(dual)).tangent is None
        assert forward_ad.unpack_dual(net.producer(dual)).tangent is not None
        weight = {"producer.0.weight": forward_ad.make_dual(net.producer[0].weight.detach(), torch.ones(4, 3).double())}
        for strategy, lives in (("freeze", False), ("none", True)):
            tangent = forward_ad.unpack_dual(functional_call(Consumer(strategy), weight, (_x(),))).tangent
            assert (tangent is not None) == lives


@pytest.mark.parametrize(("strategy", "words"), [("detach_", "Can't detach views"), ("data", "under vmap")])
def test_what_a_transform_cannot_hold_it_refuses(strategy: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        vmap(Consumer(strategy))(_x())


def test_identity_hooks_and_buffers_are_the_modules_own_where_parameters_are_exchanged() -> None:
    net = Consumer("freeze")
    net.producer[1] = nn.BatchNorm1d(4).double()
    seen = []
    net.producer[0].register_forward_hook(lambda m, *_: seen.append((m is net.producer[0], m.weight.requires_grad)))
    before = net.producer[1].running_mean.clone()  # pyright: ignore
    found = _by_fast_weights(net, net.held(), _x())
    assert seen == [(True, False)]
    assert not torch.equal(net.producer[1].running_mean, before)  # pyright: ignore
    assert _norm(found, "producer") == 0 < _norm(found, "head")


@pytest.mark.parametrize("reentrant", [True, False])
def test_fast_weights_and_a_checkpoint(reentrant: bool) -> None:
    """The second forward, after ``functional_call`` has ended, still has the tensors that it had put in place."""
    net, x = Consumer("freeze"), _x().requires_grad_()
    fast = {name: (p * 2).requires_grad_() for name, p in net.held().items()}
    (expected,) = torch.autograd.grad(net.loss({name: p * 1.0 for name, p in fast.items()}, x), x)
    producer, boundary = net.producer, net.boundary
    net.boundary = boundary.over(producer)  # pyright: ignore

    def again(x: Tensor) -> Any:
        return checkpoint(producer, x, use_reentrant=reentrant)

    net.forward = lambda x: net.head(net.boundary(again, x)).sin().sum()  # pyright: ignore
    net.loss({name: p * 1.0 for name, p in fast.items()}, x).backward()
    assert torch.equal(x.grad, expected)  # pyright: ignore
    assert [name for name, p in fast.items() if p.grad is not None] == ["head.weight", "head.bias"]
