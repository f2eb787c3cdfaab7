"""The flow audit inside Lightning's loop: manual and automatic optimisation, names, reports, and what stays behind."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conf_tests.installed import hooks_on, modes
from stopgrad import FlowContract, GradientLeak, GradientStarved, Stops
from stopgrad.flow.values import place
from stopgrad.freeze import FrozenDrift
from stopgrad.lightning import FlowAudit, FreezeAudit, loss_name, unaudited

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


class Gan(L.LightningModule):
    FLOW = FlowContract(
        {
            "d_loss": {"discriminator": "open", "generator": "blocked", "stop.fakes": "blocked"},
            "g_loss": {"generator": "open", "discriminator": "blocked", "stop.discriminator": "blocked"},
        }
    )

    def __init__(self, fakes: str = "detach", discriminator: str = "freeze", named: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.stop = Stops(
            {"fakes": fakes, "discriminator": discriminator},
            {"fakes": ["detach", "no_grad", "none"], "discriminator": ["freeze", "none"]},
        )
        self.named = named

    def d_loss(self, reals: Tensor) -> Tensor:
        fakes = self.stop.fakes(self.generator, reals[:, :2])
        return F.softplus(self.discriminator(fakes)).mean() + F.softplus(-self.discriminator(reals)).mean()

    def g_loss(self, reals: Tensor) -> Tensor:
        fakes = self.generator(reals[:, :2])
        return F.softplus(-self.stop.discriminator(self.discriminator, fakes)).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for name, optimizer in zip(("d_loss", "g_loss"), self.optimizers(use_pl_optimizer=False), strict=True):
            loss = getattr(self, name)(batch[0])
            optimizer.zero_grad()
            if self.named:
                with loss_name(name):
                    self.manual_backward(loss)
            else:
                self.manual_backward(loss)
            optimizer.step()
            self.log(f"loss/{name}", loss.detach())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.discriminator.parameters()), torch.optim.Adam(self.generator.parameters())]


class Regression(L.LightningModule):
    """Automatic optimisation, in the style of public examples: it knows nothing of the audit."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            features = self.backbone(batch[0])
        loss = F.mse_loss(self.head(features), batch[0].sum(1, keepdim=True))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: L.LightningModule, *callbacks: L.Callback, batches: int = 3, **options: Any) -> L.Trainer:
    data = torch.randn(batches * 8, 4, generator=torch.Generator().manual_seed(0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"logger": False, **options},
    )
    trainer.fit(module, DataLoader(TensorDataset(data), batch_size=8))
    return trainer


def _states(callback: FlowAudit) -> dict[tuple[str, str], str]:
    assert callback.matrix is not None
    return {key: cell.state for key, cell in callback.matrix.items()}


@pytest.mark.parametrize("named", [True, False])
def test_a_gan_with_manual_optimisation(named: bool) -> None:
    callback = FlowAudit()
    fit(Gan(named=named), callback)
    assert _states(callback) == {
        ("d_loss", "generator"): "blocked",
        ("d_loss", "discriminator"): "open",
        ("d_loss", "stop.fakes"): "blocked",
        ("d_loss", "stop.discriminator"): "independent",
        ("g_loss", "generator"): "open",
        ("g_loss", "discriminator"): "blocked",
        ("g_loss", "stop.fakes"): "independent",
        ("g_loss", "stop.discriminator"): "blocked",
    }
    assert callback.matrix is not None
    (cut,) = callback.matrix["d_loss", "generator"].cuts
    assert (cut.kind, cut.boundary) == ("detach", "fakes")
    assert cut.file.endswith("test_lightning.py")
    assert cut.line == Gan.d_loss.__code__.co_firstlineno + 1


class RepeatsTheSum(Gan):
    """Reports each loss once, and then steps on their sum: a leak in it is not what is asked."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        with unaudited():
            self.manual_backward(self.d_loss(batch[0]) + 3 * self.g_loss(batch[0]))


def test_unaudited_backward_is_neither_a_row_nor_in_one() -> None:
    plain, repeats = FlowAudit(), FlowAudit()
    fit(Gan(), plain, batches=1)
    fit(RepeatsTheSum(), repeats, batches=1)
    assert plain.matrix is not None
    assert repeats.matrix is not None
    assert repeats.matrix.to_dict() == plain.matrix.to_dict()


def test_names_without_a_watch_follow_the_optimisers() -> None:
    callback = FlowAudit(contract=FlowContract({}, frozen=[]), watch=False)
    module = Gan(named=False)
    fit(module, callback)
    assert callback.matrix is not None
    assert callback.matrix.losses == ("optimizer_0", "optimizer_1")


def test_a_leak_raises_or_warns() -> None:
    with pytest.raises(GradientLeak, match=r"(?s)d_loss reaches generator.*d_loss reaches stop.fakes"):
        fit(Gan(fakes="none"), FlowAudit())
    assert modes() == 0
    callback = FlowAudit(on_violation="warn")
    with pytest.warns(UserWarning, match="d_loss reaches generator"):
        fit(Gan(fakes="none"), callback)
    assert {(v.kind, v.part) for v in callback.violations} == {("leak", "generator"), ("leak", "stop.fakes")}


def test_what_is_only_recorded_is_not_said(recwarn: pytest.WarningsRecorder) -> None:
    callback = FlowAudit(on_violation="record")
    fit(Gan(fakes="none"), callback)
    assert [str(warning.message) for warning in recwarn if "reaches" in str(warning.message)] == []
    assert {v.part for v in callback.violations} == {"generator", "stop.fakes"}


def test_automatic_optimisation_without_touching_the_module() -> None:
    watching, callback = FlowAudit(on_violation="record"), FlowAudit(watch=False)
    fit(Regression(), watching)
    assert [(f.name, f.severity) for f in watching.findings] == [("never_moved", "error")]
    assert _states(watching) == {("loss", "backbone"): "blocked", ("loss", "head"): "open"}
    with pytest.warns(UserWarning, match=r"backbone.0.weight, .* never moved in 3 steps of SGD: no gradient arrived"):
        fit(Regression(), callback)
    assert _states(callback) == {("loss", "backbone"): "blocked", ("loss", "head"): "open"}
    assert callback.matrix is not None
    assert {cut.kind for cut in callback.matrix["loss", "backbone"].cuts} == {"no_grad"}


def test_norms_are_those_of_the_gradient() -> None:
    module = Gan()
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(module.d_loss(data), list(module.discriminator.parameters()))
    expected = torch.cat([g.flatten() for g in grads]).norm().item()
    callback = FlowAudit()
    fit(module, callback, batches=1)
    assert callback.matrix is not None
    assert callback.matrix["d_loss", "discriminator"].norm == pytest.approx(expected, rel=1e-5)


def test_training_is_the_same_bit_for_bit_and_nothing_stays() -> None:
    weights = []
    for callbacks in ([], [FlowAudit(every_n_steps=1)]):
        module = Gan()
        fit(module, *callbacks)
        weights.append(module.state_dict())
        assert hooks_on(module) == modes() == 0
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_off_nothing_is_installed_between_audits() -> None:
    seen = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            seen.append((modes(), hooks_on(pl_module) > 0))

    fit(Gan(), FlowAudit(every_n_steps=2), Spy(), batches=5)
    assert seen == [(1, True), (0, False)] * 2 + [(1, True)]


def test_after_an_exception_the_mode_and_the_hooks_are_off() -> None:
    class Broken(Gan):
        def g_loss(self, reals: Tensor) -> Tensor:
            raise KeyError("broken")

    module = Broken()
    with pytest.raises(KeyError, match="broken"):
        fit(module, FlowAudit())
    assert hooks_on(module) == modes() == 0


@pytest.mark.parametrize("fakes", ["none", "detach"])
def test_the_record_of_the_first_audit(fakes: str) -> None:
    callback = FlowAudit(on_violation="record")
    fit(Gan(fakes=fakes), callback)
    assert callback.record is not None
    assert callback.matrix is not None
    learnt = {n["id"]: n["learns"] for n in callback.record["nodes"] if n["kind"] == "module"}
    for (loss, part), cell in callback.matrix.items():
        if not part.startswith("stop."):
            assert learnt[part].get(loss, 0.0) == pytest.approx(cell.norm)
    ways = {(e["from"].partition("@")[0], e["to"].partition("@")[0]): e["losses"] for e in callback.record["edges"]}
    crossed = ways["generator", "stop.fakes"]
    assert crossed.keys() == ({"d_loss"} if fakes == "none" else set())
    if fakes == "none":  # as at the boundary's own column
        assert crossed["d_loss"]["norm"] == pytest.approx(callback.matrix["d_loss", "stop.fakes"].norm)


def test_tensorboard_gets_norms_the_picture_and_the_cuts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.warns(UserWarning, match="d_loss reaches generator"):
        fit(
            Gan(fakes="none"),
            FlowAudit(every_n_steps=2, on_violation="warn"),
            logger=TensorBoardLogger(tmp_path, name="", version=""),
        )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"flow/d_loss/generator", "flow/g_loss/generator", "flow/d_loss/generator/leak_share"} <= set(scalars)
    assert [event.step for event in events.Scalars("flow/d_loss/generator")] == [0, 2]
    assert 0 < events.Scalars("flow/d_loss/generator/leak_share")[0].value < 1
    assert {"flow/matrix", "flow/picture"} <= set(events.Tags()["images"])
    (words,) = events.Tensors("flow/picture/text_summary")  # once, however often the flow is audited
    assert b"d_loss reaches generator" in words.tensor_proto.string_val[0]
    assert "flow/matrix/text_summary" in events.Tags()["tensors"]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="on_violation=ignore: choose one of raise, warn, record"):
        FlowAudit(on_violation="ignore")
    with pytest.raises(ValueError, match="every_n_steps=0"):
        FlowAudit(every_n_steps=0)
    with pytest.raises(ValueError, match="names part 'critic'"):
        fit(Gan(), FlowAudit(contract=FlowContract({"d_loss": {"critic": "open"}})))


class RareGenerator(Gan):
    """Its generator steps every third batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=False)
        for name, optimizer in list(zip(("d_loss", "g_loss"), optimizers, strict=True))[: 1 + (batch_idx % 3 == 2)]:
            optimizer.zero_grad()
            with loss_name(name):
                self.manual_backward(getattr(self, name)(batch[0]))
            optimizer.step()


@pytest.mark.parametrize(("batches", "losses"), [(6, ("d_loss", "g_loss")), (2, ("d_loss",))])
def test_first_audit_waits_for_every_loss_of_the_contract(batches: int, losses: tuple[str, ...]) -> None:
    callback = FlowAudit()
    with pytest.warns(UserWarning, match="before these losses .*: g_loss$") if batches == 2 else nullcontext():
        fit(RareGenerator(), callback, batches=batches)
    assert callback.matrix is not None
    assert callback.matrix.losses == losses
    assert callback.violations == []


@pytest.mark.parametrize("batches", [2, 6])
def test_leak_is_judged_with_all_losses_or_at_the_end(batches: int) -> None:
    with pytest.raises(GradientLeak, match="d_loss reaches generator"):
        fit(RareGenerator(fakes="none"), FlowAudit(), batches=batches)


class Misnamed(Gan):
    """Says ``loss_d`` where its contract says ``d_loss``."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for name, optimizer in zip(("d_loss", "g_loss"), self.optimizers(use_pl_optimizer=False), strict=True):
            optimizer.zero_grad()
            with loss_name("loss_d" if name == "d_loss" else name):
                self.manual_backward(getattr(self, name)(batch[0]))
            optimizer.step()


class Unnamed(Gan):
    """Three losses in the contract, and two optimisers to name them by."""

    FLOW = FlowContract({**Gan.FLOW, "r1": {"discriminator": "open"}})


@pytest.mark.parametrize("batches", [3, 25])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Misnamed, r"names loss 'd_loss', which did not come in .* batches; there is loss_d, g_loss; did you mean"),
        (Unnamed, r"(?s)'d_loss', .* there is optimizer_0, optimizer_1.*'g_loss', .*'r1', .*by loss_name\('r1'\)"),
    ],
)
def test_a_loss_that_never_comes_is_an_error(module: type[Gan], message: str, strict: bool, batches: int) -> None:
    def make() -> Gan:
        return module(named=False)

    contract = FlowContract(module.FLOW, strict=strict)
    with pytest.raises(GradientStarved, match=message):
        fit(make(), FlowAudit(contract=contract), batches=batches)
    callback = FlowAudit(on_violation="warn", contract=contract)
    with pytest.warns(UserWarning, match=message):
        fit(make(), callback, batches=batches)
    assert "missing" in {v.kind for v in callback.violations}


def test_rows_are_a_contract() -> None:
    callback = FlowAudit(contract={name: dict(row) for name, row in Gan.FLOW.items()})
    fit(Gan(), callback)
    assert callback.violations == []
    with pytest.raises(GradientLeak, match="d_loss reaches generator"):
        fit(Gan(fakes="none"), FlowAudit(contract={"d_loss": {"generator": "blocked"}}))
    with pytest.raises(ValueError, match="'opn' is none of open, attached, blocked; did you mean open"):
        FlowAudit(contract={"d_loss": {"generator": "opn"}})
    with pytest.raises(TypeError, match="contract=3: pass a FlowContract, or"):
        FlowAudit(contract=3)  # pyright: ignore[reportArgumentType]


class Rows(Gan):
    FLOW: Any = {"d_loss": {"generator": "blocked"}}  # noqa: RUF012


def test_rows_on_the_module_are_a_contract_too() -> None:
    with pytest.raises(GradientLeak, match="d_loss reaches generator"):
        fit(Rows(fakes="none"), FlowAudit())


class Bare(L.LightningModule):
    """No contract."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4).requires_grad_(not frozen) for _ in range(8)])
        self.head = nn.Linear(4, 1)

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {**{f"layer{i}": layer for i, layer in enumerate(self.layers)}, "head": self.head}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        for layer in self.layers:
            x = layer(x)
        return self.head(x).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_without_contract_the_report_is_printed_and_logged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = FlowAudit()
    fit(Bare(frozen=True), callback, logger=TensorBoardLogger(tmp_path, name="", version=""))
    _, told, _, header, row, *reasons = capsys.readouterr().out.splitlines()
    assert told == "stopgrad: 3 cycles"
    assert header.split() == [*(f"layer{i}" for i in range(8)), "head"]
    assert row.split()[:9] == ["loss", *["blocked"] * 8]
    assert reasons[0].startswith("  loss -> layer0: stopped by requires_grad")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (text,) = events.Tensors("flow/report/text_summary")
    assert str(callback.report).encode() in text.tensor_proto.string_val[0]
    fit(Bare(), FlowAudit(on_violation="record"))
    fit(Bare(), FlowAudit(contract={"loss": {"head": "open"}}))
    assert capsys.readouterr().out == ""


def test_with_a_contract_it_watches_where_that_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    callback, alone = FlowAudit(watch=True), FlowAudit()
    fit(Gan(), callback)
    assert capsys.readouterr().out.startswith("\nstopgrad: 3 cycles")
    fit(Gan(), alone)
    assert alone.report is None
    assert callback.matrix is not None
    assert alone.matrix is not None
    assert callback.matrix.to_dict() == alone.matrix.to_dict()
    assert callback.report is not None
    assert {row.name for row in callback.report.losses} == {"d_loss", "g_loss"}


# ---- what Lightning computes itself; parts by names


class Leaky(Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.head(self.backbone(batch[0])), batch[0].sum(1, keepdim=True))


@pytest.mark.parametrize("batches", [1, 2])
def test_the_division_of_an_accumulated_loss_is_not_at_the_line_of_fit(batches: int) -> None:
    callback = FlowAudit(contract={"loss": {"backbone": "blocked"}}, on_violation="record")
    fit(Leaky(), callback, batches=4, accumulate_grad_batches=batches)
    (violation,) = callback.violations
    assert callback.matrix is not None
    first, *others = callback.matrix["loss", "backbone"].path
    if batches == 1:
        others.insert(0, first)
    else:
        assert re.fullmatch(r"div \(.*lightning/pytorch/loops/optimization/automatic\.py:\d+\)", first)
        assert first in violation.text
    line = Leaky.training_step.__code__.co_firstlineno + 1
    assert {step.partition(" ")[2] for step in others[:-1]} == {f"({place(__file__, line)})"}
    assert others[0].startswith("mse_loss")


class Adapted(L.LightningModule):
    """A frozen layer with a LoRA, on one child."""

    def __init__(self, b: float = 0.0, train: tuple[str, ...] = ("lora.A", "lora.B")) -> None:
        super().__init__()
        torch.manual_seed(0)
        lora = nn.ParameterDict({"A": torch.randn(2, 4), "B": torch.full((1, 2), b)})
        self.net = nn.ModuleDict({"base": nn.Linear(4, 1).requires_grad_(False), "lora": lora})
        self.trained = train

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        base, lora = self.net.children()
        return (base(batch[0]) + batch[0] @ lora["A"].T @ lora["B"].T).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.net.get_parameter(name) for name in self.trained], lr=0.01)


class Grouped(Adapted):
    def parameter_groups(self) -> dict[str, Any]:
        return {"adapter": "*.lora.*", "frozen": ["net.base.weight", "net.base.bias"]}


def test_a_lora_is_attached_in_its_first_step_and_the_message_says_why() -> None:
    contract = {"loss": {"net.lora.A": "attached", "lora": "open", "*.base": "blocked"}}
    callback = FlowAudit(contract=contract)
    fit(Adapted(), callback)
    assert callback.matrix is not None
    assert callback.matrix["loss", "lora.A"].zeros == ("lora.B",)  # told after the step in which B has moved
    with pytest.raises(GradientStarved, match=r"multiplied by lora\.B, which is all zeros\n.*call the part 'attached'"):
        fit(Adapted(), FlowAudit(contract={"loss": {"*.A": "open"}}))
    fit(Adapted(b=1.0), FlowAudit(contract={"loss": {"*.A": "open"}}))


def test_a_lora_that_is_never_trained_is_told() -> None:
    held = pytest.warns(UserWarning, match=r"a gradient arrives at net\.lora\.B, and no optimiser \(SGD\) holds it")
    still = pytest.warns(
        UserWarning, match=r"net\.lora\.A requires grad and never moved in 3 steps of SGD: its gradient was"
    )
    with held, still:
        fit(Adapted(train=("lora.A",)), FlowAudit(contract={"loss": {"lora.B": "open"}}))


def test_groups_by_names() -> None:
    callback = FlowAudit(contract={"loss": {"adapter": "open", "frozen": "blocked"}})
    fit(Grouped(), callback, FreezeAudit(parts=["frozen"], every_n_steps=1))
    assert callback.matrix is not None
    assert callback.matrix.parts == ("adapter", "frozen")
    moved = Grouped(train=("base.weight",))
    moved.net["base"].requires_grad_(True)
    with pytest.raises(FrozenDrift, match=r"base\.weight"):
        fit(moved, FreezeAudit(parts=["net.base"], every_n_steps=1))
