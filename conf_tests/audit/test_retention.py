"""Kept graphs are found, counted exactly and told apart; overwritten saved data is named with its line."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conf_tests.audit.test_lightning import fit
from stopgrad.audits.retention import GraphRetained, SavedDataCorrupted, graph_size, growth, guard_saved, kept_graphs
from stopgrad.lightning import RetentionAudit

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


def _saved_bytes(forward: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The independent count: distinct storages that pass a pack hook."""
    storages: dict[int, int] = {}
    keep = []

    def pack(t: Tensor) -> Tensor:
        keep.append(t)
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return forward(), sum(storages.values())


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5)),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
    ids=["mlp", "conv", "transformer"],
)
def test_bytes_are_those_that_were_saved(net: nn.Module) -> None:
    x = (
        torch.randn(2, 1, 8, 8)
        if isinstance(net[0] if isinstance(net, nn.Sequential) else net, nn.Conv2d)
        else torch.randn(2, 3, 4)
    )
    loss, expected = _saved_bytes(lambda: net(x).square().mean())
    assert graph_size(loss).bytes == expected > 0


def test_live_and_spent() -> None:
    w = torch.randn(64, 64, requires_grad=True)
    loss = w.tanh().exp().mean()
    size = graph_size(loss, exclude=[w])
    assert (size.nodes, size.bytes, size.spent) == (4, 2 * 64 * 64 * 4, False)
    loss.backward()
    size = graph_size(loss)
    assert (size.nodes, size.bytes, size.spent) == (4, 0, True)


def test_a_checkpoint_is_not_run_again() -> None:
    w, calls = torch.randn(8, 8, requires_grad=True), []

    def block(t: Tensor) -> Tensor:
        calls.append(1)
        return t.tanh().exp()

    loss = checkpoint(block, w, use_reentrant=False).sum()  # pyright: ignore[reportOptionalMemberAccess]
    assert not graph_size(loss).spent
    assert len(calls) == 1


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.history: list[Tensor] = []
        self.last: dict[str, tuple[Tensor, ...]] = {}
        self.total: Tensor | float = 0.0


def test_places_are_named_and_kinds_are_told_apart() -> None:
    holder = Holder()

    def step() -> None:
        loss = holder.inner(torch.ones(2, 4)).square().mean()
        holder.history.append(loss)
        holder.last = {"loss": (loss.detach(), loss)}
        holder.total = holder.total + loss
        loss.backward()

    step()
    step()
    before = kept_graphs({"module": holder}, exclude=holder.parameters())
    step()
    now = kept_graphs({"module": holder}, exclude=holder.parameters())
    assert [(k.path, k.tensors) for k in now] == [
        ("module.history", 3),
        ("module.last['loss']", 1),
        ("module.total", 1),
    ]
    assert all(kept.spent for kept in now)
    grown = growth(before, now)
    assert len(grown) == 2
    assert "module.history keeps 3 tensors" in grown[0]
    assert "it grew by 1 tensors; keep them detached" in grown[0]
    assert "as total += loss does" in grown[1]


class Logger(L.LightningModule):
    def __init__(self, keep: str) -> None:
        super().__init__()
        self.net, self.keep = nn.Linear(4, 1), keep
        self.total: Tensor | float = 0.0
        self.outputs: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        loss = F.mse_loss(out, batch[0].sum(1, keepdim=True))
        match self.keep:
            case "sum":
                self.total = self.total + loss
            case "item":
                self.total = self.total + loss.item()
            case "outputs":
                self.outputs.append(out)
            case "detached":
                self.outputs.append(out.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(("keep", "place"), [("sum", "module.total"), ("outputs", "module.outputs")])
def test_the_callback_names_what_grows(keep: str, place: str) -> None:
    with pytest.raises(GraphRetained, match=f"{place} keeps .* nodes more than before"):
        fit(Logger(keep), RetentionAudit(every_n_steps=1))
    with pytest.warns(UserWarning, match=place):
        fit(Logger(keep), RetentionAudit(every_n_steps=2, on_violation="warn"), batches=4)


def test_what_is_only_recorded_is_not_said(recwarn: pytest.WarningsRecorder) -> None:
    callback = RetentionAudit(every_n_steps=2, on_violation="record")
    fit(Logger("sum"), callback, batches=4)
    assert [str(warning.message) for warning in recwarn if "keeps" in str(warning.message)] == []
    (line,) = callback.growing
    assert line.startswith("module.total keeps ")


@pytest.mark.parametrize("keep", ["item", "detached", "nothing"])
def test_the_callback_passes_what_is_detached(keep: str) -> None:
    callback = RetentionAudit(every_n_steps=1)
    fit(Logger(keep), callback)
    assert callback.kept == []


# ---- the corruption guard


def _write_through_data(out: Tensor) -> None:
    out.data.zero_()


def _write_through_an_alias(out: Tensor) -> None:
    out.data.view(-1)[1:].add_(1)


def _plain_in_place(out: Tensor) -> None:
    out.detach().zero_()


@pytest.mark.parametrize("write", [_write_through_data, _write_through_an_alias, _plain_in_place])
def test_overwritten_saved_data_is_named_with_its_line(write: Callable[[Tensor], None]) -> None:
    a = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    line = write.__code__.co_firstlineno + 1

    def step() -> None:
        with guard_saved():
            out = a.sigmoid()
            write(out)
            out.sum().backward()

    with pytest.raises(SavedDataCorrupted, match=rf"test_retention.py:{line};"):
        step()
    assert a.grad is None


def test_harmless_writes_pass_and_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters())
    x = torch.randn(8, 4)
    grads = []
    for guarded in (False, True):
        net.zero_grad()
        if guarded:
            with guard_saved():
                net(x).square().mean().backward()
                buffer = torch.zeros(4)
                buffer[:2].data.fill_(1)
                optimizer.step()
        else:
            net(x).square().mean().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_double_backward_works_under_the_guard() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    with guard_saved():
        (first,) = torch.autograd.grad(x**3, x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
    assert second.item() == 12.0
