"""``compile=update``: a loss compiled with its gradient teaches what it teaches eagerly, and cuts what it cuts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from conf_tests.helpers import result, train
from stopgrad import Boundary, FlowContract, audit
from stopgrad.runner.compiling import compile_losses, compiled_losses, live_in, losses_of
from stopgrad.runner.errors import InputError, RunFailed

# torch.compile's own, which it hides except from pytest
HIDDEN = ["ignore:.*should not be instantiated:DeprecationWarning", "ignore:The .grad attribute"]
pytestmark = [pytest.mark.filterwarnings(each) for each in HIDDEN]
STRATEGIES = ["none", "detach", "detach_", "data", "no_grad", "freeze", "scale:0.5", "scale:0", "reverse:2"]


class Producer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) * 2

    def other(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).tanh()


class Toy(L.LightningModule):
    """A producer, a boundary, a consumer that also sees what the producer makes past the boundary."""

    FLOW = FlowContract({"loss": {"consumer": "open"}})

    def __init__(self, strategy: str, how: str = "module") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.producer, self.consumer = nn.Linear(2, 3), Producer(), nn.Linear(3, 1)
        self.stop, self.how, self.seen = Boundary("x", strategy), how, torch.zeros(())

    def loss(self, batch: Tensor) -> Tensor:
        inputs = self.before(batch + torch.randn_like(batch))
        match self.how:
            case "module":
                crossed = self.stop(self.producer, inputs)
            case "method":
                crossed = self.stop(self.producer.other, inputs)
            case "function":
                crossed = self.stop.over(self.producer, self.before)(lambda x: self.producer(x).exp(), inputs)
            case _:
                crossed = self.stop.cross(self.producer(inputs))
        self.seen = crossed.detach().mean()
        return (self.consumer(crossed) + self.producer.other(inputs).sum(-1, keepdim=True)).square().mean()


@pytest.fixture
def traced(monkeypatch) -> Iterator[None]:
    """Graphs run as they were traced, not as C++: it is in the trace that a cut could be lost."""
    torch.compiler.reset()

    def traced(function: Any, *, options: Any, **kwargs: Any) -> Any:
        return compile(function, backend="aot_eager", **kwargs)

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    yield
    torch.compiler.reset()


def gradients(recipe: L.LightningModule, name: str, *args: Any) -> dict[str, Tensor | None]:
    """Of one backward, and the loss."""
    recipe.zero_grad()
    torch.manual_seed(1)
    loss = getattr(recipe, name)(*args)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in recipe.named_parameters()}


def assert_same(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    for name, gradient in wanted.items():
        there = found[name]
        if gradient is None or there is None:
            assert there is gradient, name
        else:
            torch.testing.assert_close(there, gradient, rtol=1e-6, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("how", ["module", "method", "function", "value"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_cuts_what_it_cuts_eagerly(strategy, how, traced):
    if how == "value" and strategy in ("no_grad", "freeze"):
        pytest.skip("works on calls")
    batch = torch.randn(5, 2)
    eager, compiled = Toy(strategy, how), Toy(strategy, how)
    compile_losses(compiled)
    wanted = gradients(eager, "loss", batch)
    assert_same(gradients(compiled, "loss", batch), wanted)
    assert_same({"seen": compiled.seen}, {"seen": eager.seen})
    assert compiled_losses(compiled) == ["loss"]


def test_a_graph_draws_what_the_loss_would_draw():
    """The same noise, of the same stream: compiled by inductor, which has one of its own."""
    torch.compiler.reset()
    batch, eager, compiled = torch.randn(5, 2), Toy("freeze"), Toy("freeze")
    compile_losses(compiled)
    wanted = gradients(eager, "loss", batch), torch.rand(3)
    found = gradients(compiled, "loss", batch), torch.rand(3)
    assert_same(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_a_weight_counts_and_gradients_add_up(traced):
    batch, eager, compiled = torch.randn(5, 2), Toy("detach"), Toy("detach")
    compile_losses(compiled)
    for recipe in (eager, compiled):
        torch.manual_seed(1)
        (recipe.loss(batch) * 3).backward()
        (recipe.loss(2 * batch) + recipe.loss(batch) / 7).backward()
    assert_same(*({n: p.grad for n, p in recipe.named_parameters()} for recipe in (compiled, eager)))


def test_a_live_argument_gets_its_gradient(traced):
    """As the codes of recipe=vqvae, which several losses share."""
    eager, compiled = Toy("detach"), Toy("detach")
    compile_losses(compiled)
    found = []
    for recipe in (eager, compiled):
        leaf = torch.ones(5, 2, requires_grad=True)
        torch.manual_seed(1)
        recipe.loss(leaf.sin()).backward()
        found.append({"leaf": leaf.grad})
    assert found[0]["leaf"].abs().max() > 0
    assert_same(found[1], found[0])


def test_a_gradient_that_would_be_lost_is_an_error(traced):
    """What carries gradient into a loss and is neither a parameter nor an argument."""
    toy = Toy("none")
    toy.state = toy.before(torch.ones(5, 2))
    toy.loss = lambda batch: toy.consumer(toy.state + batch.sum()).square().mean()
    compile_losses(toy)
    with pytest.raises(RunFailed, match=r"^compile=update: loss is no one graph: .*external grad_fn.*; choose true"):
        toy.loss(torch.ones(5, 2))


def test_a_second_derivative_is_refused_and_not_left_out(traced):
    toy = Toy("none")
    compile_losses(toy)
    with pytest.raises(RunFailed, match=r"^compile=update: a derivative is taken of a compiled loss's gradient"):
        torch.autograd.grad(toy.loss(torch.ones(5, 2)), [toy.consumer.weight], create_graph=True)


def test_an_inner_derivative_is_compiled(traced):
    """A penalty on a slope, as of recipe=gan: compile=true has no second derivatives."""

    def penalised(toy: Toy, batch: Tensor) -> Tensor:
        points = batch.detach().requires_grad_()
        (slope,) = torch.autograd.grad(toy.consumer(toy.producer(toy.before(points))).sum(), points, create_graph=True)
        return slope.square().sum()

    eager, compiled = Toy("none"), Toy("none")
    for recipe in (eager, compiled):
        recipe.loss = partial(penalised, recipe)
    compile_losses(compiled)
    assert_same(*(gradients(recipe, "loss", torch.ones(5, 2)) for recipe in (compiled, eager)))


def test_what_is_audited_or_evaluated_runs_as_it_is(traced):
    toy = Toy("detach")
    compile_losses(toy)
    with audit({"producer": toy.producer, "consumer": toy.consumer}, boundaries=["x"]) as seen:
        seen.loss("loss", toy.loss(torch.ones(5, 2)))
    assert seen.matrix()["loss", "producer"].state == "open"
    assert seen.matrix()["loss", "stop.x"].state == "blocked"
    with torch.no_grad():
        toy.loss(torch.ones(5, 2))
    toy.eval().loss(torch.ones(5, 2)).backward()
    assert compiled_losses(toy) == []
    toy.train().loss(torch.ones(5, 2)).backward()
    assert compiled_losses(toy) == ["loss"]


def test_a_recipe_whose_losses_are_no_methods_is_refused():
    class Other(Toy):
        FLOW = FlowContract({"other_loss": {"consumer": "open"}})

    with pytest.raises(InputError, match=r"^compile=update: no loss in Other.FLOW is a method of Other; "):
        losses_of(Other("none"))


def test_an_error_of_the_loss_itself_is_told_as_it_is(traced):
    toy = Toy("freeze", "value")
    compile_losses(toy)
    with pytest.raises(ValueError, match=r"stop\.x=freeze: freeze works on a call"):
        toy.loss(torch.ones(5, 2))


def test_arguments_are_searched_for_what_is_live():
    leaf, dead = torch.ones(1, requires_grad=True), torch.ones(1)
    assert [*live_in(((dead, [leaf]), {"a": {"b": leaf}, "c": dead, "d": 3}))] == [leaf, leaf]


@pytest.mark.full
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler")
class TestRuns:
    """recipe=gan with a penalty and noise, as train.py runs it."""

    RUN = ("recipe=gan", "recipe.width=32", "data.batch_size=24", "trainer.val_check_interval=10", "compile=update")
    RUN += ("trainer.log_every_n_steps=10",)
    LAST = "ckpt_path=part/checkpoints/last.ckpt"

    def weights(self, folder: Path, steps: int, *more: str) -> str:
        """Their hash after so many steps."""
        name = "part" if "hydra.run.dir=part" in more else f"run-{len([*folder.iterdir()])}"
        ran = train(*self.RUN, f"trainer.max_steps={steps}", f"hydra.run.dir={name}", *more, cwd=folder)
        assert (ran.returncode, ran.stderr) == (0, "")
        found = result(folder / name)
        assert found["compiled"] == ["d_loss", "g_loss"]
        assert "compiled: d_loss, g_loss" in ran.stdout
        assert found["settings"]["compile"] == "update"
        assert len({rank["weights_sha256"] for rank in found.get("ranks", [found])}) == 1
        return found["weights_sha256"]

    def test_the_same_run_twice_ends_with_the_same_bits(self, tmp_path):
        assert self.weights(tmp_path, 30) == self.weights(tmp_path, 30)

    def test_a_resumed_run_ends_as_one_that_was_left_alone(self, tmp_path):
        """Without the audit, which would run the first batch after the checkpoint eagerly."""
        whole = self.weights(tmp_path, 30, "callbacks.flow=null")
        self.weights(tmp_path, 20, "callbacks.flow=null", "hydra.run.dir=part")
        assert self.weights(tmp_path, 30, "callbacks.flow=null", self.LAST) == whole

    def test_two_ranks_stay_together(self, tmp_path):
        self.weights(tmp_path, 10, "trainer=ddp", "trainer.devices=2")
