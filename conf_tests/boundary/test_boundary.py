"""Each strategy of a Boundary: forward bit for bit, and the gradient exactly blocked, passed, scaled or reversed."""

import enum
from typing import NamedTuple

import pytest
import torch
from torch import nn

from stopgrad import Boundary, Stops
from stopgrad.cuts.torch_internals import version_of

CUTS_ON_VALUES = ["detach", "detach_", "data"]
CUTS_ON_CALLS = [*CUTS_ON_VALUES, "no_grad", "freeze"]
DTYPES = [torch.float32, torch.float64]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def producer_and_input(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(3, 4).to(dtype), torch.randn(5, 3, dtype=dtype)


def gradient(strategy, dtype=torch.float32):
    """Of sum(cos(producer)) in the producer's weight, with the value crossing the boundary."""
    producer, x = producer_and_input(dtype)
    anchor = torch.ones((), dtype=dtype, requires_grad=True)  # so that there is something to differentiate
    crossed = Boundary("value", strategy)(producer, x)
    return torch.autograd.grad(crossed.cos().sum() + anchor, [producer.weight, anchor], allow_unused=True)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", [*CUTS_ON_CALLS, "none", "scale:0.3", "reverse:2", "inference_mode"])
def test_forward_is_bit_exact(strategy, dtype):
    producer, x = producer_and_input(dtype)
    assert torch.equal(Boundary("value", strategy)(producer, x), producer(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", CUTS_ON_CALLS)
def test_cut_blocks_the_producer(strategy, dtype):
    assert gradient(strategy, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_none_passes_the_gradient_whole(dtype):
    producer, x = producer_and_input(dtype)
    (expected,) = torch.autograd.grad(producer(x).cos().sum(), producer.weight)
    assert torch.equal(gradient("none", dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("strategy", "factor"),
    [("scale:0.25", 0.25), ("scale:0", 0.0), ("scale:1", 1.0), ("reverse:2", -2.0), ("reverse:0.5", -0.5)],
)
def test_gate_multiplies_the_gradient_exactly(strategy, factor, dtype):
    x = torch.tensor([0.3, -1.7, 2.9], dtype=dtype, requires_grad=True)
    upstream = torch.tensor([1.1, 0.7, -3.3], dtype=dtype)
    crossed = Boundary("value", strategy).cross(x)
    assert torch.equal(crossed, x)
    crossed.backward(upstream)
    assert torch.equal(x.grad, upstream * factor)


@pytest.mark.parametrize(("choice", "crosses"), [("freeze_params", "freeze"), ("cached", "no_grad")])
def test_what_only_a_recipe_offers(choice, crosses):
    boundary = Stops({"value": choice}, {"value": ["detach", choice]}).value
    assert (boundary.spelled, boundary.strategy.value) == (choice, crosses)
    assert boundary.over(nn.Linear(1, 1)).spelled == choice
    producer, x = producer_and_input()
    assert not boundary(producer, x).requires_grad
    assert producer.weight.requires_grad
    for refuse in (lambda: Boundary("value", choice), lambda: Stops({"value": choice}, {"value": ["detach"]})):
        with pytest.raises(ValueError, match=f"stop.value={choice}: choose one of .*detach"):
            refuse()


def test_gate_is_exact_where_the_usual_trick_rounds():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(0.3 * x + 0.7 * x.detach(), x)  # the trick that the Function replaces
    assert torch.equal(Boundary("value", "scale:0.3").cross(x.requires_grad_()), x)


def test_gate_has_second_and_forward_derivatives():
    gate = Boundary("value", "reverse:2").cross
    x = torch.tensor([0.5, -0.25], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((gate(x) ** 3).sum(), x, create_graph=True)
    assert torch.equal(first, -2 * 3 * x**2)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, -2 * 6 * x * -2)  # the crossing is differentiated, and gated, once more
    tangent = torch.tensor([1.0, 3.0], dtype=torch.float64)
    _, pushed = torch.func.jvp(gate, (x.detach(),), (tangent,))
    assert torch.equal(pushed, -2 * tangent)
    per_sample = torch.func.vmap(torch.func.grad(lambda value: gate(value) ** 2))(x.detach())
    assert torch.equal(per_sample, -2 * 2 * x.detach())


@pytest.mark.parametrize("strategy", CUTS_ON_VALUES)
def test_values_are_cut_through_a_pytree(strategy):
    live = torch.ones(4, requires_grad=True)
    tree = {"pair": Pair(live * 1, live * 2), "list": [live * 3, (live * 4, None)], "name": "h", "step": 7, "lr": 0.5}
    cut = Boundary("state", strategy).cross(tree)
    tensors = [cut["pair"].first, cut["pair"].second, cut["list"][0], cut["list"][1][0]]
    assert type(cut["pair"]) is Pair
    assert [t.requires_grad for t in tensors] == [False] * 4
    assert [t[0].item() for t in tensors] == [1, 2, 3, 4]
    assert (cut["list"][1][1], cut["name"], cut["step"], cut["lr"]) == (None, "h", 7, 0.5)


def test_gate_reaches_every_tensor_of_a_pytree_and_leaves_integers():
    x = torch.ones(2, requires_grad=True)
    crossed = Boundary("state", "reverse:1").cross({"a": x * 2, "b": (x * 3, torch.tensor([1, 2]))})
    assert torch.equal(crossed["b"][1], torch.tensor([1, 2]))
    (crossed["a"] + crossed["b"][0]).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), -5.0))


def test_plain_values_in_a_pytree_pass():
    class Mode(enum.Enum):
        A = 1

    assert Boundary("state", "detach").cross([Mode.A, torch.float16, None, True]) == [Mode.A, torch.float16, None, True]


@pytest.mark.parametrize("strategy", [*CUTS_ON_VALUES, "scale:0.5"])
def test_object_that_hides_tensors_is_refused(strategy):
    hidden = torch.distributions.Normal(torch.zeros(1, requires_grad=True), 1.0, validate_args=False)
    with pytest.raises(TypeError, match=f"stop.policy={strategy}: cannot cut a Normal; pass its tensors"):
        Boundary("policy", strategy).cross({"policy": hidden})


def test_detach_shares_memory_and_detach_inplace_returns_its_argument():
    x = torch.ones(3, requires_grad=True) * 2
    assert Boundary("v", "detach").cross(x).data_ptr() == x.data_ptr()
    assert Boundary("v", "detach_").cross(x) is x
    assert x.grad_fn is None


def test_detach_keeps_the_version_counter_and_data_drops_it():
    x = torch.ones(3, requires_grad=True) * 2
    Boundary("v", "detach").cross(x).add_(1)
    assert version_of(x) == 1
    Boundary("v", "data").cross(x).add_(1)
    assert version_of(x) == 1


def test_detach_inplace_on_a_view_raises():
    x = torch.ones(4, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="Can't detach views in-place"):
        Boundary("v", "detach_").cross(x[:2])


@pytest.mark.parametrize("strategy", ["no_grad", "inference_mode", "freeze"])
def test_strategies_of_calls_refuse_values(strategy):
    with pytest.raises(ValueError, match=f"stop.hidden={strategy}: {strategy} works on a call.*detach_, data"):
        Boundary("hidden", strategy).cross(torch.ones(1))


def test_inference_tensor_cannot_be_saved_by_a_consumer_but_can_be_added():
    producer, x = producer_and_input()
    crossed = Boundary("fakes", "inference_mode")(producer, x)
    assert crossed.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (crossed + weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((4,), 5.0))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        crossed * weight


@pytest.mark.parametrize(("strategy", "builds"), [("detach", True), ("no_grad", False)])
def test_no_grad_never_builds_the_graph(strategy, builds):
    seen = []

    def produce(x):
        y = producer(x)
        seen.append(y.grad_fn is not None)
        return y

    producer, x = producer_and_input()
    Boundary("v", strategy)(produce, x)
    assert seen == [builds]


class TestFreeze:
    def test_restores_each_flag(self):
        producer, x = producer_and_input()
        producer.bias.requires_grad_(False)
        inside = []
        producer.register_forward_hook(lambda m, *_: inside.append([p.requires_grad for p in m.parameters()]))
        Boundary("v", "freeze")(producer, x)
        assert inside == [[False, False]]
        assert [p.requires_grad for p in producer.parameters()] == [True, False]

    def test_restores_on_an_exception(self):
        producer, _ = producer_and_input()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            Boundary("v", "freeze")(producer, torch.ones(2, 7))
        assert producer.weight.requires_grad
        assert producer.bias.requires_grad

    def test_gradient_passes_through_to_the_input(self):
        producer, x = producer_and_input()
        x.requires_grad_()
        Boundary("v", "freeze")(producer, x).sum().backward()
        assert torch.equal(x.grad, producer.weight.detach().sum(0).expand(5, 3))
        assert producer.weight.grad is None

    def test_bound_method_freezes_its_module(self):
        producer, x = producer_and_input()
        assert not Boundary("v", "freeze")(producer.forward, x).requires_grad

    def test_function_needs_its_modules_named(self):
        producer, x = producer_and_input()

        def produce(x):
            return producer(x)

        with pytest.raises(TypeError, match=r"stop.v=freeze: produce is no module.*boundary.over\(module, ...\)"):
            Boundary("v", "freeze")(produce, x)
        assert not Boundary("v", "freeze").over(producer)(produce, x).requires_grad
        assert Boundary("v", "none").over(producer)(produce, x).requires_grad

    def test_shared_parameters_are_restored_once(self):
        producer, x = producer_and_input()
        tied = nn.Linear(3, 4)
        tied.weight = producer.weight
        Boundary("v", "freeze").over(producer, tied)(lambda x: producer(x) + tied(x), x)
        assert all(p.requires_grad for p in [*producer.parameters(), *tied.parameters()])


class TestNested:
    def test_inner_cut_holds_inside_an_open_boundary(self):
        producer, x = producer_and_input()
        inner, outer = Boundary("inner", "no_grad"), Boundary("outer", "none")
        assert not outer(lambda x: inner(producer, x) * 2, x).requires_grad

    def test_freeze_inside_freeze_restores_in_order(self):
        producer, x = producer_and_input()
        other = nn.Linear(4, 4)
        inner, outer = Boundary("inner", "freeze"), Boundary("outer", "freeze").over(producer, other)
        outer(lambda x: other(inner(producer, x)), x)
        assert all(p.requires_grad for p in [*producer.parameters(), *other.parameters()])

    def test_gates_multiply(self):
        x = torch.ones(2, requires_grad=True)
        Boundary("b", "reverse:3").cross(Boundary("a", "scale:0.5").cross(x)).sum().backward()
        assert torch.equal(x.grad, torch.full((2,), -1.5))

    def test_grad_mode_is_what_it_was(self):
        producer, x = producer_and_input()
        with torch.no_grad():
            Boundary("v", "no_grad")(producer, x)
            assert not torch.is_grad_enabled()
        Boundary("v", "inference_mode")(producer, x)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("strategy", [*CUTS_ON_CALLS, "none", "scale:0.5", "reverse:1"])
class TestAround:
    def test_compiled_network(self, strategy):
        producer, x = producer_and_input()
        compiled = torch.compile(producer, backend="aot_eager", fullgraph=True)
        crossed = Boundary("v", strategy)(compiled, x)
        torch.testing.assert_close(crossed, producer(x))
        assert crossed.requires_grad == (strategy in ("none", "scale:0.5", "reverse:1"))
        assert producer.weight.requires_grad

    def test_autocast(self, strategy):
        producer, x = producer_and_input()
        with torch.autocast("cpu", torch.bfloat16):
            plain = producer(x)
            crossed = Boundary("v", strategy)(producer, x)
        assert crossed.dtype == torch.bfloat16
        assert torch.equal(crossed, plain)
        if strategy in ("none", "scale:0.5", "reverse:1"):
            (passed,) = torch.autograd.grad(crossed.sum(), producer.bias)
            factor = {"none": 1, "scale:0.5": 0.5, "reverse:1": -1}[strategy]
            assert torch.equal(passed, torch.full((4,), 5.0 * factor))
        else:
            assert not crossed.requires_grad


class TestNames:
    @pytest.mark.parametrize(
        ("strategy", "message"),
        [
            ("detatch", "stop.v=detatch: choose one of none, detach, .*; did you mean detach?"),
            ("scale", "stop.v=scale: scale needs a finite number; write scale:a, such as scale:0.5"),
            ("scale:abc", "stop.v=scale:abc: scale needs a finite number"),
            ("reverse:nan", "stop.v=reverse:nan: reverse needs a finite number"),
            ("detach:1", "stop.v=detach:1: detach takes no factor; write stop.v=detach"),
            (None, "stop.v=None: choose one of"),
        ],
    )
    def test_wrong_strategy(self, strategy, message):
        with pytest.raises(ValueError, match=message):
            Boundary("v", strategy)

    def test_stops_gives_boundaries_and_switches_by_name(self):
        stop = Stops(
            {"fakes": "scale:0.5"}, {"fakes": ["detach", "scale"], "d": ["freeze"]}, {"zero": ["timely", "late"]}
        )
        assert (stop.fakes.spelled, stop.fakes.factor, stop.d.spelled, stop.zero) == (
            "scale:0.5",
            0.5,
            "freeze",
            "timely",
        )
        assert repr(stop) == "Stops(fakes=scale:0.5, d=freeze, zero=timely)"
        with pytest.raises(AttributeError, match="no boundary or switch named 'fake'"):
            _ = stop.fake

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            ({"fake": "detach"}, "stop.fake=detach: this recipe has stop.fakes, stop.zero; did you mean fakes?"),
            ({"fakes": "no_grad"}, "stop.fakes=no_grad: choose one of detach, scale:a"),
            ({"fakes": "scale"}, "stop.fakes=scale: scale needs a finite number"),
            ({"zero": "lat"}, "stop.zero=lat: choose one of timely, late; did you mean late?"),
        ],
    )
    def test_stops_refuses_what_is_not_declared(self, chosen, message):
        with pytest.raises(ValueError, match=message):
            Stops(chosen, {"fakes": ["detach", "scale"]}, {"zero": ["timely", "late"]})

    def test_deepcopy_and_pickle(self):
        import copy
        import pickle

        stop = Stops({}, {"fakes": ["detach"]})
        assert copy.deepcopy(stop).fakes.spelled == pickle.loads(pickle.dumps(stop)).fakes.spelled == "detach"
