"""Reports of losses that use what another thread computed: measured, or unknown with its line; never independent."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conf_tests.installed import global_hooks
from stopgrad import audit

HERE = __file__.rpartition("/")[2]
Way = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def _thread(daemon: bool) -> Way:
    def way(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        made: list[Tensor] = []
        thread = threading.Thread(target=lambda: made.append(run(x)), daemon=daemon)
        thread.start()
        thread.join(60)
        return made[0]

    return way


def _executor(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return next(pool.map(run, [x]))


def _pool(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with ThreadPool(1) as pool:
        return pool.map(run, [x])[0]


def _asyncio(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return asyncio.run(asyncio.to_thread(run, x))


@pytest.fixture(scope="module")
def old() -> Iterator[ThreadPoolExecutor]:
    """An executor whose thread is there before the audit."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(len, "").result()
        yield pool


WAYS = {"thread": _thread(False), "daemon": _thread(True), "executor": _executor, "pool": _pool, "asyncio": _asyncio}


class Nets:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.target, self.online, self.unused = (nn.Linear(3, 3) for _ in range(3))
        self.x = torch.randn(4, 3)

    def parts(self) -> dict[str, nn.Module]:
        return {"target": self.target, "online": self.online, "unused": self.unused}

    def audited(self, way: Way, run: Callable[[Tensor], Tensor]) -> Any:
        with audit(self.parts()) as a:
            made = way(run, self.x)
            a.loss("loss", (self.online(self.x) - made).square().mean()).backward()
        return a.matrix()


def _jobs(nets: Nets) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "detach": lambda x: nets.target(x).detach(),
        "no_grad": lambda x: torch.no_grad()(nets.target)(x),
        "function": lambda x: F.linear(x, nets.target.weight).detach(),
        "operator": lambda x: (x @ nets.target.weight).detach(),
        "numpy": lambda x: torch.from_numpy(nets.target(x).detach().numpy()),
    }


def _is_told(matrix: Any, part: str) -> bool:
    cell = matrix["loss", part]
    return cell.state == "opaque" and "another thread computed at" in cell.note and HERE in cell.note


@pytest.mark.parametrize("way", [*WAYS, "old"])
@pytest.mark.parametrize("job", _jobs(Nets()))
def test_a_target_of_another_thread_is_unknown(way: str, job: str, old: ThreadPoolExecutor) -> None:
    """https://github.com/pytorch/pytorch/issues/20528: a pool computes what the loss compares with."""
    nets = Nets()
    ways = {**WAYS, "old": lambda run, x: old.submit(run, x).result(timeout=60)}
    matrix = nets.audited(ways[way], _jobs(nets)[job])
    assert _is_told(matrix, "target")
    assert _is_told(matrix, "unused")
    assert matrix["loss", "online"].state == "open"
    assert nets.target.weight.grad is None


@pytest.mark.parametrize("way", ["executor", "old"])
def test_a_function_of_pytorchs_that_a_thread_is_handed(way: str, old: ThreadPoolExecutor) -> None:
    nets = Nets()
    ways = {**WAYS, "old": lambda run, x: old.submit(run, x).result(timeout=60)}
    weight = nets.target.requires_grad_(False).weight
    matrix = nets.audited(lambda run, x: ways[way](run, x.T).T, weight.matmul)
    assert matrix["loss", "target"].state == matrix["loss", "unused"].state == "opaque"


@pytest.mark.parametrize("name", ["torch.mul", "F.linear", "Tensor.mul"])
def test_a_thread_that_is_one_of_pytorchs_functions(name: str) -> None:
    nets = Nets()
    weight, one = nets.target.weight.detach(), torch.eye(3)
    run: Any = {"torch.mul": torch.mul, "F.linear": F.linear, "Tensor.mul": weight.mul}[name]
    with audit(nets.parts()) as a:
        thread = threading.Thread(target=run, args=[one] if name == "Tensor.mul" else [weight, one])
        thread.start()
        thread.join(60)
        a.loss("loss", nets.online(nets.x).sum())
    assert a.matrix()["loss", "target"].state == "opaque"


@pytest.mark.parametrize("way", [*WAYS, "old"])
def test_a_module_that_a_thread_is_handed(way: str, old: ThreadPoolExecutor) -> None:
    """No function of the user's runs there: the pool calls the module itself, whose forward is PyTorch's."""
    nets = Nets()
    ways = {**WAYS, "old": lambda run, x: old.submit(run, x).result(timeout=60)}
    matrix = nets.audited(ways[way], nets.target)
    assert matrix["loss", "target"].state == "open"
    assert matrix["loss", "unused"].state == "opaque"
    matrix = nets.audited(ways[way], nets.target.requires_grad_(False))
    assert matrix["loss", "target"].state == "opaque"


def test_pieces_that_a_pool_maps() -> None:
    """https://github.com/pytorch/pytorch/issues/67887: their graphs join in one loss, and their gradient is exact."""
    nets = Nets()
    with audit(nets.parts()) as a:
        for _ in range(50):
            nets.online(nets.x)  # numbers of nodes, which each thread counts for itself
        with ThreadPool(4) as pool:
            pieces = pool.map(lambda row: nets.target(row).square().sum(), list(nets.x))
        a.loss("loss", torch.stack(pieces).sum() + nets.online(nets.x).sum()).backward()
    cell = a.matrix()["loss", "target"]
    norm = torch.cat([p.grad.flatten() for p in nets.target.parameters()]).norm()  # pyright: ignore
    assert cell.norm == pytest.approx(norm.item(), rel=1e-6)
    assert cell.state == "open"
    assert a.matrix()["loss", "unused"].state == "opaque"


@pytest.mark.parametrize("earlier", [0, 1])
def test_two_threads_number_their_nodes_alike(earlier: int) -> None:
    """A node of the other thread has the number of one of this thread's, which is of another part."""
    nets = Nets()

    def run(x: Tensor) -> Any:
        for _ in range(earlier):
            nets.online(x)
        with audit(nets.parts()) as a:
            for _ in range(20):
                nets.unused(x)
            made = _executor(lambda x: nets.target(x).sin().cos().tanh(), x)
            a.loss("loss", made.sum())
        return a.matrix()

    matrix = _executor(run, nets.x)  # in a new thread, whose first node is number 0
    assert matrix["loss", "target"].state == "open"
    assert matrix["loss", "unused"].state == "opaque"


class Remembers(nn.Module):
    """Its forward leaves a value on it, as a policy with a head for values does."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value, self.last = nn.Linear(3, 2), nn.Linear(3, 1), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.value(x)
        return self.policy(x)


@pytest.mark.parametrize("live", [True, False])
def test_a_value_that_another_threads_forward_left_behind(live: bool) -> None:
    """https://github.com/ray-project/ray/issues/10628: between forward and use another thread calls forward.

    https://github.com/DLR-RM/stable-baselines3/issues/715: rollouts are collected while the policy is trained.
    """
    torch.manual_seed(0)
    net, x = Remembers(), torch.randn(4, 3)
    with audit(net) as a:
        policy = net(x)
        _thread(False)(net if live else torch.no_grad()(net), 2 * x)
        a.loss("loss", policy.square().mean() + net.last.square().mean())
    matrix = a.matrix()
    assert matrix["loss", "policy"].state == "open"
    assert matrix["loss", "value"].state == ("open" if live else "opaque")
    if not live:
        assert _is_told(matrix, "value")


def test_what_begins_elsewhere_goes_on_here_and_is_cut_here() -> None:
    nets = Nets()
    with audit(nets.parts()) as a:
        made = _executor(nets.target, nets.x)
        a.loss("loss", (nets.online(nets.x) - made.detach()).square().mean())
    cell = a.matrix()["loss", "target"]
    assert cell.state == "blocked"
    assert [cut.kind for cut in cell.cuts] == ["detach"]


@pytest.mark.parametrize("way", ["executor", "pool", "asyncio"])
def test_threads_that_compute_nothing_do_not_matter(way: str, old: ThreadPoolExecutor) -> None:
    """Those that wait, that run functions of the standard library, or compute when the audit is over."""
    nets = Nets()

    def counted(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        assert WAYS[way](len, x) == 4
        return x

    assert nets.audited(counted, nets.target)["loss", "target"].state == "independent"
    old.submit(nets.target, nets.x).result(timeout=60)
    assert nets.audited(counted, nets.target)["loss", "target"].state == "independent"


@pytest.mark.parametrize(
    ("names", "state"),
    [("import time", "independent"), ("from torch import Tensor", "opaque"), ("import torch.nn as n", "opaque")],
)
def test_a_package_that_has_nothing_of_pytorchs_does_not_matter(names: str, state: str, tmp_path: Path) -> None:
    """A progress bar watches itself in a thread of its own; a package with PyTorch in it may compute there."""
    package = tmp_path / "site-packages" / f"bar_{state}_{len(names)}.py"
    package.parent.mkdir()
    package.write_text(f"{names}\ndef refresh(x):\n    return x\n")
    spec = importlib.util.spec_from_file_location(package.stem, package)
    assert spec is not None
    bar = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(bar)
    nets = Nets()

    def shown(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        thread = threading.Thread(target=bar.refresh, args=(x,))
        thread.start()
        thread.join(60)
        return x

    assert nets.audited(shown, nets.target)["loss", "target"].state == state


def test_a_forward_that_a_backward_runs_again_elsewhere_does_not_matter(old: ThreadPoolExecutor) -> None:
    """As on a GPU, where PyTorch runs every backward in a thread of its own."""
    nets = Nets()
    with audit(nets.parts()) as a:
        made: Any = checkpoint(nets.target, nets.x.requires_grad_(), use_reentrant=False)
        old.submit(a.loss("first", made.sum()).backward).result(timeout=60)
        a.loss("second", nets.online(nets.x).sum())
    assert a.matrix()["first", "target"].state == "open"
    assert a.matrix()["second", "unused"].state == "independent"


def test_nothing_is_left_and_a_profiler_of_the_users_goes_on() -> None:
    calls: list[str] = []

    def mine(frame: Any, event: str, arg: Any) -> None:
        calls.append(frame.f_code.co_name)

    nets, submit, hooks = Nets(), ThreadPoolExecutor.submit, global_hooks()
    threading.setprofile(mine)
    try:
        matrix = nets.audited(_executor, _jobs(nets)["detach"])
        assert threading.getprofile() is mine
    finally:
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    assert _is_told(matrix, "target")
    assert "forward" in calls
    assert ThreadPoolExecutor.submit is submit
    assert global_hooks() == hooks
    assert sys.getprofile() is None


def test_a_loss_reported_from_another_thread_is_refused() -> None:
    nets = Nets()
    with audit(nets.parts()) as a:
        loss = nets.online(nets.x).sum()
        with pytest.raises(RuntimeError, match="loss 'loss': reported from another thread"):
            _executor(lambda x: a.loss("loss", loss), nets.x)
