"""What the audit leaves behind (nothing), what it refuses (in one clear line), and how parts and losses are named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conf_tests.installed import global_hooks, hooks_on, modes
from stopgrad import Boundary, FlowContract, GradientLeak, GradientStarved, assert_flow, audit
from stopgrad.flow.values import place


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(8, 2)
        self.probe = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.probe(h.detach())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def _fingerprint(net: nn.Module) -> list[Tensor]:
    state = [t.clone() for t in net.state_dict().values()]
    grads = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in net.parameters()]
    return [*state, *grads, torch.get_rng_state()]


# ---- leaves no trace


def test_a_training_with_audits_is_the_same_bit_for_bit(x: Tensor) -> None:
    def train(audited: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            if audited:
                with audit(net) as a:
                    loss = sum(out.square().mean() for out in net(x))
                    a.loss("loss", loss)
                    loss.backward()
                    optimizer.step()
            else:
                loss = sum(out.square().mean() for out in net(x))
                loss.backward()
                optimizer.step()
        return _fingerprint(net)

    for plain, audited in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, audited)


def test_assert_flow_with_a_function_leaves_everything(net: Net, x: Tensor) -> None:
    net(x)[0].sum().backward()
    before = _fingerprint(net)
    net.eval()

    def step() -> Tensor:
        net.train()
        return net(x)[0].square().mean()

    assert_flow(step, net, reaches=["head", "trunk"], not_reaches="probe")
    assert not net.training
    for a, b in zip(before, _fingerprint(net), strict=True):
        assert torch.equal(a, b)
    assert hooks_on(net) == global_hooks() == 0


def test_everything_is_taken_off_after_an_exception(net: Net, x: Tensor) -> None:
    before = _fingerprint(net)

    def step() -> None:
        with audit(net) as a:
            net.eval()
            a.loss("loss", net(x)[0].mean())
            raise KeyError

    with pytest.raises(KeyError):
        step()
    assert modes() == 0
    assert hooks_on(net) == global_hooks() == 0
    for a, b in zip(before, _fingerprint(net), strict=True):
        assert torch.equal(a, b)


def test_checkpointed_batch_norm_and_dropout_are_left_alone(net: Net, x: Tensor) -> None:
    """The probe runs the checkpointed forward again: its statistics and random numbers must not show."""
    for reentrant in (False, True):
        x = x.detach().requires_grad_()
        with audit(net) as a:
            loss = net.head(checkpoint(net.trunk, x, use_reentrant=reentrant)).square().mean()
            before = _fingerprint(net)
            a.loss("loss", loss)
            for one, two in zip(before, _fingerprint(net), strict=True):
                assert torch.equal(one, two)
            assert x.grad is None
            assert a.matrix()["loss", "trunk"].state == "open"
            loss.backward()
        net.zero_grad()


def test_nothing_is_installed_when_off(net: Net, x: Tensor) -> None:
    """No modes and no hooks, and what crosses a boundary is the tensor itself."""
    h = net.trunk(x)
    assert Boundary("h", "none").cross(h) is h
    assert modes() == 0
    assert hooks_on(net) == global_hooks() == 0
    with audit(net):
        assert modes() == 1
    assert modes() == 0
    assert hooks_on(net) == global_hooks() == 0


# ---- parts


def test_parts_may_be_modules_parameters_lists_and_pytrees(net: Net, x: Tensor) -> None:
    parts = {
        "trunk": net.trunk,
        "weight": net.head.weight,
        "list": [net.head.bias],
        "tree": {"probe": [net.probe.weight, (net.probe.bias,)]},
        "generator": net.probe.parameters(),
    }
    with audit(parts) as a:
        a.loss("loss", net(x)[0].square().mean())
    states = {part: a.matrix()["loss", part].state for part in parts}
    assert states == {
        "trunk": "open",
        "weight": "open",
        "list": "open",
        "tree": "independent",
        "generator": "independent",
    }


def test_tied_weights_show_all_their_names() -> None:
    embed, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    with audit({"embed": embed, "head": head}) as a:
        a.loss("loss", head(embed(torch.arange(5)).detach()).square().mean())
    matrix = a.matrix()
    assert matrix["loss", "embed"].state == matrix["loss", "head"].state == "open"
    assert matrix["loss", "embed"].path[-1] == "embed.weight = head.weight"


def test_a_shared_module_is_judged_in_each_part(x: Tensor) -> None:
    shared = nn.Linear(4, 4)
    with audit({"a": nn.Sequential(shared), "b": nn.ModuleList([shared, nn.Linear(4, 4)])}) as a:
        a.loss("loss", shared(x).square().mean())
    assert a.matrix()["loss", "a"].norm == a.matrix()["loss", "b"].norm > 0


def test_norm_is_that_of_the_gradient(net: Net, x: Tensor) -> None:
    net.eval()
    with audit(net) as a:
        loss = a.loss("loss", net(x)[0].square().mean())
    grads = torch.autograd.grad(loss, list(net.trunk.parameters()))
    expected = torch.cat([g.flatten() for g in grads]).norm().item()
    assert a.matrix()["loss", "trunk"].norm == pytest.approx(expected, rel=1e-5)


def test_losses_reported_several_times_are_aggregated(net: Net, x: Tensor) -> None:
    with audit(net) as a:
        for scale in (1.0, 3.0, 0.0):
            a.loss("loss", scale * net.head(x.repeat(1, 2)).mean())
    cell = a.matrix()["loss", "head"]
    assert cell.state == "open"
    assert cell.norm == pytest.approx(3 * torch.cat([x.repeat(1, 2).mean(0), torch.ones(1)]).norm().item() / 2**0.5)


def test_two_losses_on_shared_fakes(x: Tensor) -> None:
    g, d = nn.Linear(4, 4), nn.Linear(4, 1)
    stop = Boundary("fakes", "detach")
    with audit({"g": g, "d": d}) as a:
        fakes = g(x)
        a.loss("d_loss", F.softplus(d(stop.cross(fakes))).mean())
        a.loss("g_loss", F.softplus(-d(fakes)).mean())
    states = {key: cell.state for key, cell in a.matrix().items()}
    assert states == {
        ("d_loss", "g"): "blocked",
        ("d_loss", "d"): "open",
        ("d_loss", "stop.fakes"): "blocked",
        ("g_loss", "g"): "open",
        ("g_loss", "d"): "open",
        ("g_loss", "stop.fakes"): "independent",
    }


def test_the_path_names_operations_and_lines(x: Tensor) -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 1)
    with audit({"a": a, "b": b}) as flow:
        h = a(x).tanh()
        flow.loss("loss", b(h).mean())
    *steps, parameter = flow.matrix()["loss", "a"].path
    assert [step.split()[0] for step in steps] == ["mean", "linear", "tanh", "linear"]
    assert all("test_audit.py:" in step for step in steps)
    assert parameter in ("a.weight", "a.bias")


def test_a_loss_computed_before_the_audit_is_opaque_where_it_is_not_reached(net: Net, x: Tensor) -> None:
    loss = net(x)[0].mean()
    with audit(net) as a:
        a.loss("loss", loss)
    assert a.matrix()["loss", "head"].state == "open"
    assert a.matrix()["loss", "probe"].state == "opaque"
    with pytest.warns(UserWarning, match="before the audit"):
        a.check({"loss": {"probe": "blocked"}})
    with pytest.raises(GradientLeak, match="cannot tell"):
        a.check(FlowContract({"loss": {"probe": "blocked"}}, strict=True))


# ---- a training in the style of public code, audited without touching it


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int = 20, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.transformer = nn.Transformer(width, 2, 1, 1, 32, dropout=0.1, batch_first=True)
        self.generator = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(self.embed(source), self.embed(target), tgt_mask=mask)
        return self.generator(hidden)


def _train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.train()
    total = 0.0
    for source, target in batches:
        logits = model(source, target[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def test_a_transformer_in_a_plain_loop_is_audited_without_touching_it() -> None:
    results = []
    for audited in (False, True):
        torch.manual_seed(0)
        model = LanguageModel()
        optimizer = torch.optim.AdamW(model.parameters())
        batches = [(torch.randint(20, (4, 6)), torch.randint(20, (4, 7))) for _ in range(3)]
        if audited:
            with audit(model, backward="loss") as a:
                loss = _train_epoch(model, optimizer, batches)
            assert {key: cell.state for key, cell in a.matrix().items()} == {
                ("loss", "embed"): "open",
                ("loss", "transformer"): "open",
                ("loss", "generator"): "open",
            }
        else:
            loss = _train_epoch(model, optimizer, batches)
        results.append((loss, [p.clone() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_reported_loss_is_not_reported_again_by_its_backward(net: Net, x: Tensor) -> None:
    with audit(net, backward="backward") as a:
        a.loss("loss", net(x)[0].mean()).backward()
        net(x)[1].mean().backward()
    assert a.matrix().losses == ("loss", "backward")


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_two_losses_of_a_loop_are_two_rows(x: Tensor) -> None:
    g, d = nn.Linear(4, 4), nn.Linear(4, 1)
    g_optimizer, d_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (g, d))
    line = _two_losses.__code__.co_firstlineno
    with audit({"g": g, "d": d}, backward="loss") as a:
        for _ in range(2):
            _two_losses(g, d, x)
    rows = [f"loss ({place(__file__, line + i)})" for i in (1, 2)]
    assert a.matrix().losses == tuple(rows)
    assert [a.matrix()[row, "g"].state for row in rows] == ["blocked", "open"]
    assert set(a.loss_values.values()) == set(rows)
    with audit({"g": g, "d": d}, backward="loss") as a:  # through one line, each computed at its own
        for _ in range(2):
            _update(d_optimizer, d(g(x).detach()).mean())
            _update(g_optimizer, d(g(x)).square().mean())
    here = test_two_losses_of_a_loop_are_two_rows.__code__.co_firstlineno
    assert a.matrix().losses == tuple(f"loss ({place(__file__, here + i)})" for i in (13, 14))
    with audit({"g": g, "d": d}, backward="loss") as a:  # and the same twice is one
        for _ in range(2):
            _update(d_optimizer, d(g(x)).mean())
    assert a.matrix().losses == ("loss",)


def _two_losses(g: nn.Module, d: nn.Module, x: Tensor) -> None:
    _softplus(d(g(x).detach())).backward()
    _softplus(-d(g(x))).backward()


def _softplus(score: Tensor) -> Tensor:
    return nn.functional.softplus(score).mean()


@pytest.mark.parametrize("by", [lambda t: t / 1, lambda t: 1.0 * t, lambda t: t.div(1.0).mul(1)])
def test_a_division_by_one_is_no_operation_and_another_is(by: Callable[[Tensor], Tensor], net: Net, x: Tensor) -> None:
    with audit(net) as a:
        loss = net(x)[0].square().mean()
        a.loss("loss", by(loss))
        a.loss("half", loss / 2)
        with torch.no_grad():
            kept = by(loss)  # a cut is one all the same
        a.loss("kept", net(x)[1].mean() * kept)
    path = a.matrix()["loss", "head"].path
    assert path[0].startswith("mean")
    assert a.matrix()["half", "head"].path[1:] == path
    assert {cut.kind for cut in a.matrix()["kept", "head"].cuts} >= {"no_grad"}


# ---- compiled modules


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_is_audited_as_if_it_were_not(x: Tensor) -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)

    @torch.compile(backend="aot_eager")
    def forward(x: Tensor) -> Tensor:
        return b(a(x).detach()).square().mean()

    forward(x).backward()
    with audit({"a": a, "b": b}) as flow:
        flow.loss("loss", forward(x))
    assert flow.matrix()["loss", "b"].state == "open"
    cell = flow.matrix()["loss", "a"]
    assert (cell.state, [cut.kind for cut in cell.cuts]) == ("blocked", ["detach"])


# ---- assert_flow


def test_assert_flow_on_a_finished_loss(net: Net, x: Tensor) -> None:
    loss = net(x)[0].mean()
    assert_flow(loss, net, reaches=["head", "trunk"], not_reaches=["probe"])
    with pytest.raises(GradientLeak, match=r"(?s)loss reaches trunk.*norm .*100%.*AddmmBackward0"):
        assert_flow(loss, net, not_reaches=["trunk"])
    with pytest.raises(GradientStarved, match="loss does not reach probe"):
        assert_flow(loss, net, reaches="probe")
    loss.backward()  # still there


def test_assert_flow_on_a_function_names_the_line(net: Net, x: Tensor) -> None:
    with pytest.raises(GradientStarved, match=r"stopped by detach at .*test_audit.py:\d+"):
        assert_flow(lambda: net(x)[1].square().mean(), net, reaches="trunk")


# ---- bad input: one clear line each


def _losses(net: Net, x: Tensor) -> Iterator[tuple[object, str]]:
    yield net(x)[0], r"expected a scalar tensor, got a tensor of shape \(16, 2\)"
    yield 3.0, "expected a scalar tensor, got a float"
    yield x.mean(), "has no graph: nothing that it uses requires grad"
    yield net(x)[0].mean().detach(), r"has no graph: detach at .*test_audit.py:\d+"


def test_what_is_no_loss_is_refused_and_training_goes_on(net: Net, x: Tensor) -> None:
    with audit(net) as a:
        for loss, message in _losses(net, x):
            with pytest.raises(ValueError, match=f"loss 'bad'.*{message}"):
                a.loss("bad", loss)  # pyright: ignore[reportArgumentType]
        a.loss("good", net(x)[0].mean()).backward()
    assert a.matrix().losses == ("good",)


def test_the_same_graph_twice_is_refused(net: Net, x: Tensor) -> None:
    with audit(net) as a:
        loss = a.loss("one", net(x)[0].mean())
        with pytest.raises(ValueError, match="loss 'two': this graph was reported already"):
            a.loss("two", loss)


def test_a_loss_after_its_backward_is_refused(net: Net, x: Tensor) -> None:
    with audit(net) as a:
        loss = net(x)[0].square().mean()
        loss.backward()
        with pytest.raises(RuntimeError, match="loss 'late': its graph was freed; report it before its backward"):
            a.loss("late", loss)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (nn.ReLU(), "ReLU has no parameters"),
        ({"act": nn.ReLU(), "fc": nn.Linear(1, 1)}, "part 'act' has no parameters"),
        ({}, "no parts"),
        ({"empty": []}, "part 'empty' has no parameters"),
    ],
)
def test_a_part_without_parameters_is_refused(modules: dict[str, nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit(modules)


def test_a_part_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="part 'x' holds a int"):
        audit({"x": [1]})
    with pytest.raises(TypeError, match="part 'x' holds a tensor that was computed"):
        audit({"x": nn.Linear(1, 1).weight * 2})


def test_a_nested_audit_is_refused_and_the_outer_one_goes_on(net: Net, x: Tensor) -> None:
    with audit(net) as a:
        with pytest.raises(RuntimeError, match="an audit is on already"), audit(net):
            pass
        a.loss("loss", net(x)[0].mean())
    assert a.matrix()["loss", "head"].state == "open"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_arrives_and_makes_no_other_zero(value: float, net: Net, x: Tensor) -> None:
    """As where a scaler's first scales are too large."""
    with audit({"trunk": net.trunk, "head": net.head, "probe": net.probe}) as a:
        out, probed = net(x)
        a.loss("loss", out.mean() * value)
        a.loss("both", out.mean() * value + probed.mean())
    matrix = a.matrix()
    assert {part: matrix["loss", part].state for part in matrix.parts} == {
        "trunk": "open",
        "head": "open",
        "probe": "independent",
    }
    assert matrix["both", "probe"].state == "open"
    assert 0 < matrix["both", "probe"].norm < 10


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_it_is_refused(mode: type, net: Net, x: Tensor) -> None:
    with mode(), pytest.raises(RuntimeError, match="audit: gradients are disabled"), audit(net):
        pass
    with audit(net) as a:
        loss = net(x)[0].mean()
        with mode(), pytest.raises(RuntimeError, match="loss 'loss': reported under no_grad"):
            a.loss("loss", loss)


def test_two_threads_are_refused_and_the_first_goes_on(net: Net, x: Tensor) -> None:
    errors: list[str] = []

    def other(a: audit, loss: Tensor) -> None:
        for attempt in (lambda: audit(net).__enter__(), lambda: a.loss("loss", loss)):
            try:
                attempt()
            except RuntimeError as error:
                errors.append(str(error))
        assert Boundary("h", "none").cross(loss) is loss  # not watched here

    with audit(net) as a:
        loss = net(x)[0].mean()
        thread = threading.Thread(target=other, args=(a, loss))
        thread.start()
        thread.join()
        a.loss("loss", loss)
    assert errors == [
        "an audit is on in another thread; one at a time: leave it first",
        "loss 'loss': reported from another thread than the one that began the audit",
    ]


def test_outside_the_block_a_loss_is_refused(net: Net, x: Tensor) -> None:
    a = audit(net)
    with pytest.raises(RuntimeError, match="loss 'loss': reported outside the audit"):
        a.loss("loss", net(x)[0].mean())


def test_assert_flow_refuses_contradictions_and_unknown_parts(net: Net, x: Tensor) -> None:
    loss = net(x)[0].mean()
    with pytest.raises(ValueError, match="'head' is in both"):
        assert_flow(loss, net, reaches=["head"], not_reaches=["head"])
    with pytest.raises(ValueError, match="name at least one part"):
        assert_flow(loss, net)
    with pytest.raises(ValueError, match=r"names part 'haed'.*did you mean head"):
        assert_flow(loss, net, reaches=["haed"])
    with pytest.raises(ValueError, match="no graph"):
        assert_flow(loss.detach(), net, reaches=["head"])


# ---- optimisers and averages inside an audit


def test_an_optimizer_step_connects_nothing_and_an_average_does(x: Tensor) -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.AdamW([*a.parameters(), *b.parameters()], weight_decay=0.1, foreach=True)
    target = torch.optim.swa_utils.AveragedModel(a, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    target.update_parameters(a)  # the first is a copy
    with audit({"a": a, "b": b}) as flow:
        b(a(x)).square().mean().backward()
        optimizer.step()
        flow.loss("alone", a(x).square().mean())
        target.update_parameters(a)
        flow.loss("against the average", (b(x) - target(x).detach()).square().mean())
    assert flow.matrix()["alone", "b"].state == "independent"
    cell = flow.matrix()["against the average", "a"]
    assert cell.state == "blocked"
    assert "no_grad" in [cut.kind for cut in cell.cuts]


def test_cuts_are_listed_from_the_loss_outwards(x: Tensor) -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 1)
    with audit({"a": a, "b": b}) as flow:
        far = a(x).detach()
        near = far.tanh().data
        flow.loss("loss", b(near).mean())
    assert [cut.kind for cut in flow.matrix()["loss", "a"].cuts] == ["data", "detach"]
