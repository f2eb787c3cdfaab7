"""A loss whose own backward comes next is measured in it: told as by a probe, bit for bit, and in half the passes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conf_tests.audit.cases import CASES, Case
from conf_tests.installed import hooks_on, modes
from stopgrad import Boundary, audit
from stopgrad.cuts.torch_internals import gradient_hooks, next_number, sequence_number, without_overrides
from stopgrad.cuts.watcher import watcher
from stopgrad.flow.probe import Probe


class Counted(torch.autograd.Function):
    """The identity; ``times`` says how often a backward went through."""

    times = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        Counted.times += 1
        return grad


@pytest.fixture(autouse=True)
def count() -> Iterator[None]:
    Counted.times = 0
    yield
    assert watcher() is None
    assert modes() == 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head, self.dead = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 4)
        self.cut = Boundary("h", "scale:2")

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        h = h + h.tanh()  # two ways, which meet
        h = self.cut.cross(h)
        h = h + (self.dead(h) * 0.0).sin()
        return Counted.apply(self.head(h)).square().mean()


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def _told(a: audit) -> dict[Any, str]:
    return {key: repr(cell) for key, cell in a.matrix().items()}


def _never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "_may_wait", lambda *_: False)


def _step(net: Net, between: Callable[[Net, Tensor], Any], **options: Any) -> audit:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with audit(net, **options) as a:
        loss = a.loss("loss", net(X))
        between(net, loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return a


def _nothing(net: Net, loss: Tensor) -> None: ...


def _many(net: Net, loss: Tensor) -> None:
    loss.item()
    for p in net.parameters():
        p.grad = None


@pytest.mark.parametrize("between", [_nothing, _many])
@pytest.mark.parametrize("draw", [False, True])
def test_one_backward_says_what_two_say(between: Any, draw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = Net(), Net()
    own = _step(nets[0], between, draw=draw)
    assert Counted.times == 1
    _never(monkeypatch)
    probed = _step(nets[1], between, draw=draw)
    assert Counted.times == 1 + 3  # of the probe, of the search for the zero, and the loss's own
    assert _told(own) == _told(probed)
    assert own.matrix()["loss", "dead"].state == "zero"
    assert own.matrix()["loss", "dead"].died
    assert own.matrix()["loss", "stop.h"].norm > 0
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, two)
    if draw:
        assert own.routes is not None
        assert probed.routes is not None
        assert own.routes.carried == probed.routes.carried


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_of_every_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for way in ("own", "probe"):
        if way == "probe":
            _never(monkeypatch)
        torch.manual_seed(0)
        a, b, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(5, 4)
        torch.manual_seed(1)
        with audit({"a": a, "b": b}) as flow:
            flow.loss("loss", case.compute(a, b, x)).backward()
        told.append(
            (_told(flow), [p.grad if p.grad is None else p.grad.tolist() for p in (*a.parameters(), *b.parameters())])
        )
    assert told[0] == told[1]


def test_where_two_ways_meet_the_sum_is_measured() -> None:
    """Autograd adds the second gradient into the first one, whose norm was known: it is another by then."""
    w = nn.Parameter(torch.ones(3))
    with audit({"w": w}) as a:
        h = w * 1.5
        gone = h.clamp(max=1.0)  # gets 3 by the one way, then 0 by the other, which is newer, and passes none on
        live = (gone * 3.0).sum()
        a.loss("loss", live + (gone.sin() * 0.0).sum()).backward()
    assert [step.split()[0] for step in a.matrix()["loss", "w"].died] == ["mul", "clamp"]


def test_all_zeros_of_a_loss_are_searched_for_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    _never(monkeypatch)
    parts = {name: nn.Parameter(torch.ones(2)) for name in "abc"}
    with audit(parts) as a:
        dead = (parts["a"].sin() * 0.0).sum() + (parts["b"].cos() - 9.0).relu().sum()
        loss = Counted.apply(dead + parts["c"].sum())
        kept = weakref.ref(loss)
        a.loss("loss", loss)
        assert Counted.times == 2
        del loss
        assert kept() is None
    found = {part: [step.split()[0] for step in a.matrix()["loss", part].died] for part in parts}
    assert found == {"a": ["mul"], "b": ["relu"], "c": []}


# ---- what comes between


def _write(net: Net, loss: Tensor) -> None:
    with torch.no_grad():
        net.head.weight.mul_(2.0)


def _write_by_optimizer(net: Net, loss: Tensor) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def _hook(net: Net, loss: Tensor) -> None:
    net.head.weight.register_hook(torch.zeros_like)


def _other(net: Net, loss: Tensor) -> None:
    (loss * 3.0).backward()


def _with_gradient(net: Net, loss: Tensor) -> None:
    loss.backward(torch.tensor(3.0))


def _with_inputs(net: Net, loss: Tensor) -> None:
    loss.backward(inputs=[net.head.bias])


def _grad(net: Net, loss: Tensor) -> None:
    torch.autograd.grad(loss, [net.head.bias])


def _twice_at_once(net: Net, loss: Tensor) -> None:
    torch.autograd.backward([loss, loss])


def _graph(net: Net, loss: Tensor) -> None:
    loss.backward(create_graph=True)


def _freeze(net: Net, loss: Tensor) -> None:
    net.head.requires_grad_(False)


def _unseen(net: Net, loss: Tensor) -> None:
    with without_overrides():
        loss.backward(torch.tensor(3.0))


def _unseen_sum(net: Net, loss: Tensor) -> None:
    with without_overrides():
        (loss * 3.0).backward()


def _in_a_thread(net: Net, loss: Tensor) -> None:
    POOL.submit(loss.backward, torch.tensor(3.0)).result(timeout=60)


def _crossing(net: Net, loss: Tensor) -> None:
    net.cut.cross(net.trunk.weight)


POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()  # its thread runs since before any audit, so that none notices it
BETWEEN = [_write, _write_by_optimizer, _hook, _other, _with_gradient, _with_inputs, _grad, _twice_at_once, _graph]
BETWEEN += [_freeze, _unseen, _unseen_sum, _in_a_thread, _crossing]


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("between", BETWEEN)
def test_what_else_comes_finds_it_measured(between: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for way in ("own", "probe"):
        if way == "probe":
            _never(monkeypatch)
        net = Net()
        with audit(net) as a:
            loss = a.loss("loss", net(X))
            between(net, loss)
        told.append(_told(a))
        assert a.matrix()["loss", "trunk"].state == "open"
    assert told[0] == told[1]


def _autocast(net: Net) -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def _steps_in_backward(net: Net) -> Any:
    def step(p: Tensor) -> None:
        with torch.no_grad():
            p.zero_()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    return torch.enable_grad()


@pytest.mark.parametrize("inside", [_autocast, _steps_in_backward])
def test_it_does_not_wait_where_its_backward_may_go_another_way(inside: Any) -> None:
    net = Net()
    with audit(net) as a, inside(net):
        loss = a.loss("loss", net(X))
        assert Counted.times > 0
        loss.backward()
    assert a.matrix()["loss", "trunk"].state == "open"


def test_a_graph_that_may_be_gone_is_refused_at_once() -> None:
    net = Net()
    with audit(net) as a:
        loss = net(X)
        loss.backward()
        with pytest.raises(RuntimeError, match="its graph was freed"):
            a.loss("loss", loss)
        h = net.trunk(X)
        h.square().sum().backward(retain_graph=True)
        before = Counted.times
        a.loss("more", Counted.apply(h).sum())
        assert Counted.times == before + 1
        a.loss("new", net(X))
        assert Counted.times == before + 1
        a.matrix()
        assert Counted.times > before + 1


@pytest.mark.parametrize(
    "ask", [audit.matrix, audit.findings, lambda a: a.loss_values, lambda a: a.check({"x": {"head": "open"}})]
)
def test_whoever_asks_finds_it_measured(ask: Callable[[audit], Any]) -> None:
    net = Net()
    with audit(net) as a:
        a.loss("x", net(X))
        assert Counted.times == 0
        ask(a)
        assert Counted.times > 0
        assert a.matrix()["x", "head"].state == "open"


def test_the_next_loss_and_an_exception_find_it_measured() -> None:
    net = Net()
    a = audit(net)

    def step() -> None:
        with a:
            first, second = net(X), net(2 * X)
            a.loss("first", first)
            a.loss("second", second)
            raise KeyError

    with pytest.raises(KeyError):
        step()
    assert {key[0] for key in _told(a)} == {"first", "second"}


# ---- the backward itself


class Nested(torch.autograd.Function):
    """Runs a backward of its own to a parameter that is none of its inputs."""

    to: nn.Parameter

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.enable_grad():
            (Nested.to * 100.0).sum().backward()
        return grad


def test_a_backward_inside_the_backward_is_none_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for way in ("own", "probe"):
        if way == "probe":
            _never(monkeypatch)
        v, w = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        with audit({"v": v, "w": w}) as a:
            Nested.to = w
            older = Nested.apply(v * 2.0).sum()  # its backward runs when w has had its gradient
            a.loss("loss", older + (w * 3.0).sum()).backward()
        norms.append([a.matrix()["loss", part].norm for part in "vw"])
    assert norms[0] == norms[1] == pytest.approx([2 * 2**0.5, 3 * 2**0.5])


def test_the_users_hooks_fire_once_and_come_first() -> None:
    net, seen = Net(), []
    net.head.bias.register_hook(lambda grad: seen.append(grad) or 5 * torch.ones_like(grad))
    _step(net, _nothing)
    with audit({"bias": net.head.bias}) as a:
        a.loss("loss", net(X)).backward()
    assert len(seen) == 2
    assert a.matrix()["loss", "bias"].norm == 5.0


def test_the_graph_is_freed_and_no_hook_stays() -> None:
    net = Net()
    with audit(net) as a:
        loss = a.loss("loss", net(X))
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        again = a.loss("again", net(X))
        again.backward(retain_graph=True)
        again.backward()
        assert Counted.times == 3
    assert hooks_on(net) == 0
    assert not gradient_hooks(net.head.weight)
    assert {key[0] for key in _told(a)} == {"loss", "again"}


def test_a_backward_that_raises_enters_nothing_and_leaves_no_hook() -> None:
    w = nn.Parameter(torch.ones(2))
    calls: list[int] = []

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            calls.append(1)
            raise ZeroDivisionError

    with audit({"w": w}) as a:
        loss = a.loss("loss", Raises.apply(w * 2.0).sum())
        with pytest.raises(ZeroDivisionError):
            loss.backward()
        (w * 2.0).sum().backward()
    assert calls == [1]
    assert not gradient_hooks(w)
    assert a.matrix().losses == ()


def test_a_graph_of_another_thread_is_not_waited_for() -> None:
    """Each thread counts its nodes for itself, so that their numbers do not say whether they were freed."""
    net = Net()

    def elsewhere() -> None:
        while next_number() < further:  # of this thread
            net.trunk(X)
        made.append(net(X))
        made[0].backward()

    made: list[Tensor] = []
    further = next_number() + 1000
    with audit(net) as a:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert sequence_number(made[0].grad_fn) > next_number()
        with pytest.raises(RuntimeError, match="its graph was freed"):
            a.loss("loss", made[0])


def test_an_audit_that_was_broken_off_is_not_asked() -> None:
    """Ctrl-C before it ends: what waited is forgotten, and a later backward finds nobody."""
    net = Net()
    a = audit(net)
    a.__enter__()
    loss = a.loss("loss", net(X))
    recorder: Any = watcher()
    recorder.off()
    loss.backward()
    a.__exit__()
    assert Counted.times == 1
    assert a.matrix().losses == ()
