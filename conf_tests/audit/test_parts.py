"""What the parts of a model are: what it is looked into, names and wildcards, adapters, and what begins as zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stopgrad import FlowContract, GradientLeak, GradientStarved, assert_flow, audit
from stopgrad.flow.parts import below, descended, find_parts, parts_of, unwrapped

X = torch.ones(3, 4)


class LoRA(nn.Module):
    """A linear layer that is frozen, and what adapts it: B A, where B begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.A = nn.Parameter(torch.randn(2, 4))
        self.B = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


class Model(nn.Module):
    """Everything hangs on one child."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(LoRA(), nn.Tanh(), LoRA())
        self.net = nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers}), "head": nn.Linear(4, 1)})

    @property
    def head(self) -> Any:
        return self.net["head"]

    @property
    def layers(self) -> Any:
        return self.net.encoder.layers  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).square().mean()


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def states(model: nn.Module, **options: Any) -> dict[str, str]:
    with audit(model, **options) as a:
        a.loss("loss", model(X))
    return {part: a.matrix()["loss", part].state for part in a.matrix().parts}


# ---- what a model is looked into


def test_a_child_that_is_alone_is_looked_into_and_halves_are_told_apart(model: Model) -> None:
    assert states(model) == {"encoder (frozen)": "blocked", "encoder (trained)": "open", "head": "open"}
    parts = parts_of(model)
    assert sum(map(len, parts.values())) == len(list(model.parameters()))
    assert {p.requires_grad for p in parts["encoder (trained)"]} == {True}
    assert {p.requires_grad for p in parts["encoder (frozen)"]} == {False}


def test_what_lies_above_the_parts_is_a_part_too(model: Model) -> None:
    with audit(model) as a:
        loss = a.loss("loss", model(X))
    grads = torch.autograd.grad(model(X), [p for p in model.parameters() if p.requires_grad])
    assert loss.requires_grad
    matrix = a.matrix()
    assert {matrix["loss", name].state for name in ("net", "encoder", "net.encoder", "net.head")} == {"open"}
    assert matrix["loss", "net"].norm == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm()))
    assert matrix["loss", "encoder"].norm == matrix["loss", "encoder (trained)"].norm
    a.check({"loss": {"net": "open", "net*": "open", "encoder": "open", "encoder (frozen)": "blocked"}})
    with pytest.raises(GradientLeak, match="loss reaches encoder, which the contract calls blocked"):
        a.check({"loss": {"encoder": "blocked"}})


def test_levels(model: Model) -> None:
    assert [*find_parts(model, depth=2).tensors] == ["encoder.layers (frozen)", "encoder.layers (trained)", "head"]
    names = [f"encoder.layers.{i} ({half})" for i in (0, 2) for half in ("frozen", "trained")]
    assert [*find_parts(model, depth=3).tensors] == [*names, "head"]
    assert [*find_parts({"m": model}, depth=3).tensors] == ["m.net.encoder", "m.net.head"]
    with pytest.raises(ValueError, match="depth=0: choose a number from 1"):
        find_parts(model, depth=0)


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


DistributedDataParallel = type("DistributedDataParallel", (Wrapped,), {})


def test_wrappers_are_looked_through_and_lose_nothing(model: Model) -> None:
    compiled: Any = torch.compile(model, backend="eager")
    wrapped = DistributedDataParallel(compiled)
    assert unwrapped(wrapped) is model
    assert [*parts_of(wrapped)] == [*parts_of(model)]
    assert descended(wrapped) == ("module._orig_mod.net", model.net)
    assert [*below("m", wrapped)] == [*parts_of(model)]
    wrapped.scale = nn.Parameter(torch.ones(()))  # more than it wraps
    assert unwrapped(wrapped) is wrapped
    assert [*parts_of(wrapped)] == ["scale", "module (frozen)", "module (trained)"]


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (nn.Linear(4, 1), ["weight", "bias"]),
        (nn.Sequential(nn.Linear(4, 1)), ["0"]),
        (nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 1))}), ["net"]),
        (nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))}), ["net"]),  # "0" would say less
    ],
)
def test_it_is_not_looked_into_for_nothing(module: nn.Module, parts: list[str]) -> None:
    assert [*parts_of(module)] == parts


def test_a_numbered_module_with_a_name_is_told_by_it() -> None:
    layers = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    assert [*below("net", layers)] == ["net (frozen)", "net (trained)"]
    assert [*parts_of(layers)] == ["0", "1"]


# ---- names and wildcards


def test_parts_by_wildcards(model: Model) -> None:
    assert states(model, parts={"lora": ["*.A", "*.B"], "base": "*.base"}) == {"lora": "open", "base": "blocked"}
    each = {f"encoder.layers.{i}.{name}": "zero" if name == "A" else "open" for i in (0, 2) for name in "AB"}
    assert states(model, parts=["*.[AB]"]) == each
    assert [*find_parts(model, ["encoder.layers.*"]).tensors] == ["encoder.layers.0", "encoder.layers.2"]  # outermost
    assert [*find_parts(model, ["net.encoder.layers.*"]).tensors] == ["encoder.layers.0", "encoder.layers.2"]
    assert find_parts(model, {"all": ["net", "*.A"], "A": "*.A"}).tied == {}  # in two parts, and no tie
    tied = find_parts(model, {"one": model.head, "other": list(model.head.parameters())}).tied
    assert tied["one"]["other"] == "one.weight = head.weight"


def test_a_name_that_nothing_has(model: Model) -> None:
    with pytest.raises(
        ValueError, match=r"part 'lora': nothing with parameters is called 'encoder\.layer'; did you mean enc"
    ):
        audit(model, parts={"lora": "encoder.layer"})
    with pytest.raises(ValueError, match=r"nothing with parameters is called 'encoder\.layers\.1'"):  # an activation
        audit(model, parts=["encoder.layers.1"])
    with pytest.raises(ValueError, match="parts is empty"):
        audit(model, parts=[])


def test_wildcards_and_names_in_contracts(model: Model) -> None:
    def loss() -> Tensor:
        return model(X)

    assert_flow(loss, model, reaches=["net.encoder.layers.*", "*.B", "head.weight"], not_reaches="*.base")
    with pytest.raises(GradientLeak) as leak:
        assert_flow(loss, model, not_reaches="encoder.layers.?")
    assert {v.part for v in leak.value.violations} == {"encoder.layers.0", "encoder.layers.2"}
    assert "untie" not in str(leak.value)  # that it lies in two parts of the audit is no tie
    model.head.requires_grad_(False)
    assert_flow(model(X), model, reaches="*.B", not_reaches=["net.head.weight"])  # a finished loss
    with audit(model) as a:
        a.loss("loss", model(X))
    with pytest.raises(ValueError, match=r"the contract names part 'encoder\.layers\.0'; there is encoder"):
        a.check({"loss": {"encoder.layers.0": "open"}})
    with audit(model, contract={"loss": {"encoder.layers.0": "open"}}) as a:
        a.loss("loss", model(X))
    a.check({"loss": {"encoder.layers.0": "open"}})


def test_parameters_in_lists_have_their_names(model: Model) -> None:
    lists = {
        "A": [p for n, p in model.named_parameters() if n.endswith("A")],
        "head": list(model.head.parameters()),
    }
    assert [*audit(lists).names.values()] == [  # from the model that a variable holds
        *("net.encoder.layers.0.A", "net.encoder.layers.2.A", "net.head.weight", "net.head.bias")
    ]
    assert [*audit(model, parts=lists).names.values()][:2] == ["encoder.layers.0.A", "encoder.layers.2.A"]
    loose = {"w": [nn.Parameter(X.clone()), nn.Parameter(X.clone())]}
    assert [*audit(loose).names.values()] == ["w[0]", "w[1]"]  # no model has them


def test_columns_leave_out_what_all_of_them_begin_with(model: Model) -> None:
    with audit({name: p for name, p in model.named_parameters() if p.requires_grad and "head" not in name}) as a:
        a.loss("loss", model(X))
    said = str(a.matrix())
    assert said.splitlines()[0].split()[:2] == ["0.A", "0.B"]
    assert "\n  the parts are those of net.encoder.layers\n" in said
    assert a.matrix()["loss", "net.encoder.layers.0.B"].state == "open"  # the names stay what they are


# ---- what begins as zero


def test_a_healthy_lora_is_attached_and_the_message_says_why_it_is_zero(model: Model) -> None:
    with pytest.raises(GradientStarved) as starved:
        assert_flow(lambda: model(X), model, reaches=["*.A"])
    first, second = (v.text for v in starved.value.violations)
    assert "since every way there is multiplied by encoder.layers.0.B, which is all zeros\n" in first
    assert "since every way there is multiplied by encoder.layers.2.B, which is all zeros\n" in second
    assert first.endswith("call the part 'attached': then a zero will do")
    assert_flow(lambda: model(X), model, attached=["*.A"], reaches=["*.B"], not_reaches=["*.base"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("B"):
                p += 1
    assert_flow(lambda: model(X), model, attached=["*.A"])  # and later


def test_attached_is_broken_by_a_cut(model: Model) -> None:
    contract = FlowContract.from_yaml("losses:\n  loss: {encoder: attached}\n")
    with audit(model) as a:
        a.loss("loss", model.head(model.layers(X).detach()).mean())
    with pytest.raises(
        GradientStarved, match=r"encoder, which the contract calls attached: .* the gradient was stopped"
    ):
        a.check(contract)
    with pytest.raises(ValueError, match="'attached', but encoder is frozen"):
        FlowContract({"loss": {"encoder": "attached"}}, frozen=["encoder"])


def test_another_reason_for_a_zero_is_not_called_so() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 1)
    nn.init.zeros_(second.bias)  # all zeros, and no factor
    with audit({"first": first, "second": second}) as a:
        a.loss("loss", second(-first(X).relu().relu().sub(100).relu()).mean())
    assert a.matrix()["loss", "first"].state == "zero"
    assert a.matrix()["loss", "first"].zeros == ()


@pytest.mark.parametrize("around", [False, True])
def test_a_way_around_the_zeros(around: bool) -> None:
    first, scale = nn.Linear(4, 4), nn.Parameter(torch.zeros(()))
    with audit({"first": first, "scale": scale}) as a:
        out = first(X)
        a.loss("loss", (out * scale).sum() + (out * 0).sum() if around else (out * scale).sum())
    cell = a.matrix()["loss", "first"]
    assert (cell.state, cell.zeros) == ("zero", () if around else ("scale",))


# ---- PEFT and transformers themselves


def _gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=16)
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


IDS = torch.arange(8)[None]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_is_its_base_and_its_adapters() -> None:
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(_gpt2(), options)

    def loss() -> Tensor:
        return model(input_ids=IDS, labels=IDS).loss

    with audit(model) as a:
        a.loss("loss", loss())
    assert {part: a.matrix()["loss", part].state for part in a.matrix().parts} == {
        "base (frozen)": "blocked",
        "lora (trained)": "open",
    }
    a.check({"loss": {"base": "blocked", "lora": "open", "base_model.model": "open"}})
    assert_flow(loss, model, attached="*.lora_A", reaches=["lora", "*.lora_B"], not_reaches=["base", "*.wte"])
    with pytest.raises(
        GradientStarved, match=r"multiplied by transformer.h.0.attn.c_attn.lora_B.default.weight, which"
    ):
        assert_flow(loss, model, reaches=["*.lora_A"])
    with audit({n: p for n, p in model.named_parameters() if "lora_" in n}) as a:
        a.loss("loss", loss())
    assert max(map(len, str(a.matrix()).splitlines()[0].split())) == len("0.attn.c_attn.lora_A.default.weight")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_trains_more_than_adapters() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)),
        peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]),
    )
    assert [*parts_of(model)] == ["base (frozen)", "lora (trained)", "modules_to_save (trained)"]
    prompted = peft.get_peft_model(_gpt2(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "prompt_encoder" in parts_of(prompted)  # it lies beside the base, so that is not looked into


def test_a_transformer_by_its_layers() -> None:
    model = _gpt2()
    assert [*find_parts(model, ["transformer.h.*"]).tensors] == ["transformer.h.0", "transformer.h.1"]
    assert_flow(lambda: model(input_ids=IDS, labels=IDS).loss, model, reaches=["transformer.h.*", "lm_head"])
