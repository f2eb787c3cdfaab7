"""What two ranks do to gradients, buffers and frozen parts, and what RankAudit says where they drift apart."""

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conf_tests.distributed.pair import on_two_ranks, trainer
from stopgrad.audits.ranks import first_difference
from stopgrad.lightning import RankAudit
from stopgrad.runner.averaging import AveragedGradients, average


class Probe(L.LightningModule):
    """A head on a backbone that is frozen when the run begins and trains from batch 3 on; the data differ by rank."""

    def __init__(self, clip=False):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()).requires_grad_(False)
        self.head, self.clip = nn.Linear(8, 1), clip

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            self.backbone.requires_grad_(True)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.head(self.backbone(batch[0])).square().mean())
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), 0.01)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def data():
    generator = torch.Generator().manual_seed(dist.get_rank())
    return DataLoader(TensorDataset(torch.randn(64, 4, generator=generator)), batch_size=8)


def fit(module, strategy, audit=None, **options):
    options = {"max_epochs": 1} | options
    trainer(strategy, callbacks=[audit] if audit else [], **options).fit(module, data())
    return module


def unfrozen(strategy):
    """The largest difference between the ranks in anything, after eight batches, five of them unfrozen."""
    module = fit(Probe(), strategy)
    found = first_difference(module)
    moved = (module.backbone[0].weight - Probe().backbone[0].weight).abs().max().item()
    return (0.0 if found is None else found.largest), moved


def test_unfreezing_after_the_start_keeps_ranks_together():
    for divergence, moved in on_two_ranks(unfrozen, AveragedGradients()):
        assert divergence == 0.0
        assert moved > 0.1


def test_lightnings_ddp_lets_them_drift_apart():
    """Why the strategy is our own: the reducer knows only what required a gradient when the module was wrapped."""
    for divergence, _ in on_two_ranks(unfrozen, DDPStrategy(find_unused_parameters=True)):
        assert divergence > 0.01


class Sabotage(L.Callback):
    """At batch 5, rank 1 changes one weight by 1e-3."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 4 and trainer.global_rank == 1:
            module.head.bias.data += 1e-3


def sabotaged(every):
    audit = RankAudit(every)
    with pytest.raises(AssertionError) as caught:
        trainer(callbacks=[Sabotage(), audit], max_epochs=1).fit(Probe(), data())
    return str(caught.value)


@pytest.mark.parametrize(
    ("every", "since"),
    [
        (1, "after batch 5, and did not after batch 4"),
        (4, "after batch 8, and did not after batch 4"),
        (None, "after batch 8, and did not after batch 1"),
    ],
)
def test_audit_names_the_tensor_and_the_step(every, since):
    for said in on_two_ranks(sabotaged, every):
        assert said.startswith("parameter head.")
        assert said.endswith(since)
        if every == 1:
            assert "parameter head.bias differs between rank 0 and rank 1, by up to 0.001 " in said


def audited_kinds():
    module = nn.BatchNorm1d(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    found = [first_difference(module, [optimizer])]
    for tensor in (optimizer.state[module.weight]["momentum_buffer"], module.running_mean, module.bias.data):
        if dist.get_rank() == 1:
            tensor += 0.25
        found.append(first_difference(module, [optimizer]))
    return [(f.kind, f.name, f.rank, round(f.largest, 6)) if f else None for f in found]


def test_difference_is_found_in_optimizer_buffer_and_parameter_in_this_order():
    expected = [
        None,
        ("optimiser state", "0.weight.momentum_buffer", 1, 0.25),
        ("buffer", "running_mean", 1, 0.25),
        ("parameter", "bias", 1, 0.25),
    ]
    assert on_two_ranks(audited_kinds) == [expected, expected]


def averaged():
    rank = dist.get_rank()
    thirds = torch.full((3,), 1 / 3)
    mixed = [torch.tensor([rank, 4.0]), torch.tensor(rank, dtype=torch.float64), torch.tensor([1j * rank]), thirds]
    average(mixed)
    return [t.tolist() for t in mixed] + [torch.equal(thirds, torch.full((3,), 1 / 3))]


def test_average_of_all_types():
    for found in on_two_ranks(averaged):
        assert found[:3] == [[0.5, 4.0], 0.5, [0.5j]]
        assert found[-1]


def first_step(clip):
    """Gradients that the optimiser sees at the first step, and BatchNorm's mean after it."""
    module, seen = Probe(clip), {}
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    module.on_before_optimizer_step = lambda optimizer: seen.setdefault("grad", module.head.weight.grad.clone())
    fit(module, AveragedGradients(), limit_train_batches=1)
    batches = [torch.randn(64, 4, generator=torch.Generator().manual_seed(rank))[:8] for rank in (0, 1)]
    grads, means = [], []
    for batch in batches:
        alone = Probe()
        alone.head(alone.backbone(batch)).square().mean().backward()
        grads.append([p.grad for p in alone.head.parameters()])
        means.append(alone.backbone[1].running_mean)
    expected = [torch.stack(pair).mean(0) for pair in zip(*grads, strict=True)]
    if clip:
        norm = torch.cat([g.flatten() for g in expected]).norm()
        expected = [g * 0.01 / (norm + 1e-6) for g in expected]
    torch.testing.assert_close(seen["grad"], expected[0])
    torch.testing.assert_close(module.backbone[1].running_mean, torch.stack(means).mean(0))
    return True


@pytest.mark.parametrize("clip", [False, True])
def test_optimizer_sees_the_average_and_clipping_comes_after_it(clip):
    assert on_two_ranks(first_step, clip) == [True, True]


class Several(L.LightningModule):
    """Raw backward, accumulation over two losses, a penalty, and one automatic-like optimiser that is used raw."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        one, two = self.optimizers()
        x = batch[0].requires_grad_()
        y = self.b(self.a(x).tanh())
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        self.manual_backward(gradient.square().sum(), retain_graph=True)  # reaches a and b
        y.square().mean().backward()  # not announced to Lightning
        one.optimizer.step()
        two.step()
        one.zero_grad()
        two.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.Adam(self.b.parameters(), lr=0.1)]


class Automatic(Probe):
    """Lightning's own loop: the backward runs inside the optimiser's step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0])).square().mean()


def together(kind, **options):
    module = fit(kind(), AveragedGradients(), RankAudit(1), **options)
    start = kind()
    return any(not torch.equal(p, q) for p, q in zip(module.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("kind", [Several, Automatic])
def test_ranks_stay_together(kind):
    assert on_two_ranks(together, kind) == [True, True]
