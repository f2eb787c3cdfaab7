"""FSDP2 beneath a recipe that holds whole tensors: equal to one process, whatever each rank reaches, and sharded."""

import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from conf_tests.distributed.pair import on_ranks, on_two_ranks, trainer
from conf_tests.helpers import ROOT
from stopgrad.lightning import RankAudit
from stopgrad.runner.averaging import AveragedGradients
from stopgrad.runner.sharding import FullyShard

ENGINES = ["flat", 1, 2]  # the exchange of CPU processes; FSDP2 as replicas; FSDP2 over both ranks


def engine(kind):
    return AveragedGradients() if kind == "flat" else FullyShard(shard=kind)


class Recipe(L.LightningModule):
    """Three networks, a temperature that nobody calls, an average; steps are given from outside."""

    def __init__(self, step, optimizer=torch.optim.SGD, **options):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.m, self.n, self.spare = (nn.Linear(1, 1, bias=False) for _ in range(3))
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))
        self.temperature = nn.Parameter(torch.ones(1))
        self.average = nn.Linear(3, 2).requires_grad_(False)
        self.double()
        self.step, self.made, self.seen = step, (optimizer, {"lr": 0.5, **options}), []

    def training_step(self, batch, batch_idx):
        self.step(self, batch_idx)

    def configure_optimizers(self):
        kind, options = self.made
        return kind([p for p in self.parameters() if p.requires_grad], **options)

    def train_dataloader(self):
        return [0] * 8


def fit(kind, step, steps=1, callbacks=(), module=None, **options):
    module = module or Recipe(step, **options)
    trainer(engine(kind), max_epochs=1, limit_train_batches=steps, callbacks=list(callbacks)).fit(module)
    return module


def whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


# ---- ranks that reach different parts


def different_networks(module, k):
    """Rank 0 reaches m and its first expert, rank 1 n, its second expert and the temperature."""
    x = torch.ones(1, 1, dtype=torch.float64)
    if dist.get_rank() == 0:
        loss = 10 * module.m(x).sum() + module.experts[0](torch.ones(3, dtype=torch.float64)).sum()
    else:
        loss = (
            1000 * module.n(x).sum()
            + module.experts[1](torch.ones(3, dtype=torch.float64)).sum()
            + 4 * module.temperature.sum()
        )
    module.manual_backward(loss)
    found = {name: p.grad for name, p in module.named_parameters()}
    module.seen.append({name: None if g is None else whole(g).flatten().tolist() for name, g in found.items()})


def reach_different_networks(kind):
    return fit(kind, different_networks).seen[0]


@pytest.mark.parametrize("kind", ENGINES)
def test_what_one_rank_reaches_is_averaged_with_zero_and_what_none_reaches_stays_none(kind):
    expected = {
        "m.weight": [5.0],
        "n.weight": [500.0],
        "spare.weight": None,
        "temperature": [2.0],
        **{f"experts.{e}.weight": [0.5] * 6 for e in (0, 1)},
        **{f"experts.{e}.bias": [0.5] * 2 for e in (0, 1)},
        **dict.fromkeys(("experts.2.weight", "experts.2.bias", "average.weight", "average.bias")),
    }
    assert on_two_ranks(reach_different_networks, kind) == [expected, expected]


def only_rank_0(module, k):
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward(
        module.m(torch.ones(1, 1, dtype=torch.float64)).sum() if dist.get_rank() == 0 else module.temperature.sum()
    )
    optimizer.step()


def unreached_under_momentum(kind):
    module = fit(kind, only_rank_0, 4, [RankAudit(1)], weight_decay=0.1, momentum=0.9)
    start = Recipe(None)
    return [
        name
        for (name, p), q in zip(module.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(p, q)
    ]


@pytest.mark.parametrize("kind", ENGINES)
def test_what_no_rank_reaches_does_not_move_under_momentum_and_decay(kind):
    assert on_two_ranks(unreached_under_momentum, kind) == [["temperature", "m.weight"]] * 2


# ---- what recipes do, against one process with both ranks' rows


def batch(rank):
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def loss_of(module, rows):
    return (module.experts[0](rows) * module.temperature).square().mean()


def penalty_of(module, rows):
    rows = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module.experts[1](rows).tanh().sum(), rows, create_graph=True)
    return gradient.square().sum(1).mean()


def functional(module, rows):
    """A call past ``forward``: with weights that are functions of the parameters."""
    inner = dict(module.experts[0].named_parameters())
    moved = {name: p - 0.1 * g for (name, p), g in zip(inner.items(), gradients(module, rows, inner), strict=True)}
    return torch.func.functional_call(module.experts[0], moved, (rows,)).square().mean()


def gradients(module, rows, inner):
    return torch.autograd.grad(loss_of(module, rows), list(inner.values()), create_graph=True)


def mean_backward(module, loss, parts):
    """Of each rank's rows by themselves: what is inside a loss stays local."""
    module.manual_backward(sum(loss(module, rows) for rows in parts) / len(parts))


def many_things(module, k, parts=None):
    """Two backwards before a step, a penalty, an inner loop, clipping by part, a late thaw, an average, a clamp."""
    parts = parts or [batch(dist.get_rank())]
    if k == 0:
        module.experts[1].requires_grad_(False)
    if k == 2:
        module.experts[1].requires_grad_(True)
    optimizer = module.optimizers()
    optimizer.zero_grad()
    mean_backward(module, loss_of, parts)
    mean_backward(module, functional, parts)
    if k >= 2:
        mean_backward(module, penalty_of, parts)
    nn.utils.clip_grad_norm_(module.experts[0].parameters(), 0.3)
    optimizer.step()
    assert module.experts[1].weight.requires_grad == (k >= 2)  # a step changes no flag
    with torch.no_grad():
        for mine, its in zip(module.average.parameters(), module.experts[0].parameters(), strict=True):
            mine.lerp_(its, 0.1)
        module.experts[0].weight.clamp_(-0.3, 0.3)


def on_an_engine(kind):
    module = fit(kind, many_things, 5, [RankAudit(1)], optimizer=torch.optim.Adam, lr=0.05)
    return {name: tensor.flatten().tolist() for name, tensor in module.state_dict().items()}


class Alone(Recipe):
    """Both ranks' rows in one process."""

    def training_step(self, batch_, k):
        many_things(self, k, [batch(0), batch(1)])


@pytest.fixture(scope="module")
def alone():
    module = Alone(None, torch.optim.Adam, lr=0.05)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=5, **options).fit(module)
    return module.state_dict()


@pytest.mark.filterwarnings("ignore")  # of Lightning, about a loader without workers
@pytest.mark.parametrize("kind", ENGINES)
def test_trains_as_one_process_does(kind, alone):
    for rank in on_two_ranks(on_an_engine, kind):
        for name, tensor in alone.items():
            torch.testing.assert_close(
                torch.tensor(rank[name], dtype=torch.float64), tensor.flatten(), rtol=1e-6, atol=1e-6, msg=name
            )


def test_replicas_of_shards_on_four_ranks():
    """Mesh (2, 2), against the flat exchange."""
    first, *others = on_ranks(4, on_an_engine, 2)
    assert others == [first] * 3
    flat = on_ranks(4, on_an_engine, "flat")[0]
    for name, tensor in first.items():
        assert flat[name] == pytest.approx(tensor, rel=1e-6, abs=1e-9), name


def by_a_closure(module, k):
    return loss_of(module, batch(dist.get_rank()))


def automatically(kind):
    module = Recipe(by_a_closure, torch.optim.Adam, lr=0.05)
    module.automatic_optimization = True
    module.training_step = lambda batch_, batch_idx: by_a_closure(module, batch_idx)
    module = fit(kind, None, 4, [RankAudit(1)], module=module)
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def test_automatic_optimisation_steps_by_a_closure():
    flat, replicas, shards = (on_two_ranks(automatically, kind) for kind in ENGINES)
    assert flat == replicas == shards
    assert flat[0]["experts.0.weight"] != Recipe(None).experts[0].weight.tolist()


# ---- what is said where a recipe does what cannot be right


def raw_on_top(module, k):
    module.manual_backward(loss_of(module, batch(0)))
    try:
        loss_of(module, batch(0)).backward()
    except RuntimeError as error:
        module.seen.append(str(error))


def add_to_an_average(kind):
    return fit(kind, raw_on_top).seen


def test_backward_that_is_not_announced_may_not_add_to_an_average():
    said = "self.manual_backward(loss)"
    assert all(each.endswith(said) for (each,) in on_two_ranks(add_to_an_average, 1))


def raw(module, k):
    loss_of(module, batch(dist.get_rank())).backward()
    module.optimizers().step()


def raw_alone(kind):
    return [p.tolist() for p in fit(kind, raw).parameters()]


def test_backward_that_is_not_announced_is_averaged_before_the_step():
    flat, replicas, shards = (on_two_ranks(raw_alone, kind) for kind in ENGINES)
    assert flat == replicas == shards


def stale(module, k):
    """The graph is older than the step."""
    y = module.experts[0](batch(0)).tanh() @ module.experts[1].weight
    module.manual_backward(y.sum(), retain_graph=True)
    module.optimizers().step()
    try:
        module.manual_backward(y.sum())
    except RuntimeError as error:
        module.seen.append(str(error).partition(":")[0])


def steps_before_backward(kind):
    return fit(kind, stale, optimizer=torch.optim.SGD).seen


@pytest.mark.parametrize("kind", [1, 2])
def test_graph_that_is_older_than_the_step_is_refused_as_alone(kind):
    (said,), (same,) = on_two_ranks(steps_before_backward, kind)
    assert (
        said == same == "one of the variables needed for gradient computation has been modified by an inplace operation"
    )


class Scalar(Recipe):
    def __init__(self, step):
        super().__init__(step)
        self.log_alpha = nn.Parameter(torch.tensor(0.0))


class Elsewhere(Recipe):
    def configure_optimizers(self):
        return torch.optim.SGD([nn.Parameter(torch.ones(7))], lr=0.1)


def refused(kind):
    with pytest.raises(ValueError, match="trainer") as caught:
        trainer(FullyShard(), max_epochs=1).fit(kind(None))
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Scalar, "log_alpha has no dimension to be sharded along; make its shape (1,)"),
        (Elsewhere, "an optimiser holds parameters that are not the recipe's, of shapes [[7]]"),
    ],
)
def test_parameter_that_cannot_be_shared_is_refused_by_its_name(module, said):
    assert all(each.endswith(said) for each in on_two_ranks(refused, module))


# ---- what is sharded, and who exchanges


def state(kind):
    """The elements of the optimiser's state on this rank, before and after a save and a load."""
    module = Recipe(lambda m, k: many_things(m, k), torch.optim.Adam, lr=0.05)
    run = trainer(engine(kind), max_epochs=1, limit_train_batches=3)
    sizes = []

    class Look(L.Callback):
        def on_train_batch_end(self, run, module, *args):
            optimizer = run.optimizers[0]
            moments = [s["exp_avg"] for s in optimizer.state.values()]
            sizes.append(sum((m.to_local() if isinstance(m, DTensor) else m).numel() for m in moments))
            saved = run.strategy.optimizer_state(optimizer)
            assert not any(isinstance(v, DTensor) for s in saved["state"].values() for v in s.values())
            run.strategy.load_optimizer_state_dict({"optimizer_states": [saved]})
            again = run.strategy.optimizer_state(optimizer)
            for before, after in zip(saved["state"].values(), again["state"].values(), strict=True):
                assert all(torch.equal(before[key], after[key]) for key in before)

    audit = RankAudit(1)
    run.callbacks += [Look(), audit]
    run.fit(module)
    return sizes[-1], len(audit.sharded), [p.tolist() for p in module.parameters()]


def test_state_is_sharded_saved_whole_and_loaded_again():
    flat, replicas, shards = (on_two_ranks(state, kind) for kind in ENGINES)
    elements = flat[0][0]
    assert elements == replicas[0][0] == replicas[1][0]
    assert shards[0][0] + shards[1][0] == elements
    assert 0 < shards[1][0] <= shards[0][0] < elements
    assert (flat[0][1], replicas[0][1]) == (0, 0)
    assert shards[0][1] > 0
    for other in (replicas, shards):
        for p, q in zip(flat[0][2], other[0][2], strict=True):
            torch.testing.assert_close(torch.tensor(q), torch.tensor(p))


def exchanged(kind):
    """(file of ours or of torch, what, dtype, elements) of each exchange within a training step."""
    calls = []

    def told(name, function):
        def call(*args, **kwargs):
            frame = sys._getframe(1)
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            ours = Path(frame.f_code.co_filename).is_relative_to(ROOT / "stopgrad")
            if module.inside:
                calls.append((ours, name, str(tensors[0].dtype), tensors[0].numel()))
            return function(*args, **kwargs)

        return call

    def step(module, k):
        module.inside = True
        many_things(module, k)
        module.inside = False

    module = Recipe(step, torch.optim.Adam, lr=0.05)
    module.inside = False
    for name in (
        "all_reduce",
        "all_gather",
        "broadcast",
        "reduce_scatter",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
    ):
        setattr(dist, name, told(name, getattr(dist, name)))
    fit(kind, None, 3, module=module)
    return calls


@pytest.mark.parametrize("kind", ENGINES)
def test_no_gradient_is_exchanged_by_our_files(kind):
    for calls in on_two_ranks(exchanged, kind):
        ours = {(name, dtype) for mine, name, dtype, _ in calls if mine}
        agreement = ("all_reduce", "torch.uint8")  # of which parameters any rank has reached
        assert ours == ({agreement} if kind != "flat" else {agreement, ("all_reduce", "torch.float64")})
        assert agreement in ours
        if kind != "flat":
            assert any(not mine and dtype == "torch.float64" for mine, _, dtype, _ in calls)  # FSDP2's
