"""Audits over ten thousand steps, and of modules nested two thousand deep."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conf_tests.audit.test_lightning import Gan, fit
from stopgrad import audit
from stopgrad.freeze import FreezeWatch, frozen_modules
from stopgrad.lightning import FlowAudit, FreezeAudit, RetentionAudit
from stopgrad.retention import guard_saved, kept_graphs
from stopgrad.steps import StepWatch

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers"),
]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
STEPS, WARM = 10_000, 1_000
DEEP = 2_000


def _memory() -> tuple[int, int]:
    """Objects that Python's collector knows, and the most memory that the process has had, in KiB."""
    gc.collect()
    return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Steps:
    """A small training with a frozen part; ``step`` is one of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"body": nn.Linear(4, 4).requires_grad_(False), "head": nn.Linear(4, 1)})
        self.optimizer = SGD(self.net.parameters(), 1e-4, momentum=0.9)

    def loss(self) -> torch.Tensor:
        return self.net["head"](self.net["body"](X)).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def _audited(steps: Steps) -> Callable[[], None]:
    def step() -> None:
        with audit(steps.net, optimizers=[steps.optimizer]) as a:
            steps.optimizer.zero_grad()
            a.loss("loss", steps.loss()).backward()
            steps.optimizer.step()
        assert a.matrix()["loss", "head"].state == "open"

    return step


def _guarded(steps: Steps) -> Callable[[], None]:
    def step() -> None:
        with guard_saved():
            steps.step()

    return step


def _searched(steps: Steps) -> Callable[[], None]:
    def step() -> None:
        steps.step()
        assert kept_graphs({"net": steps.net, "optimizer": steps.optimizer}) == []

    return step


def _watched(steps: Steps) -> Callable[[], None]:
    freeze = FreezeWatch({"body": steps.net["body"]}, [steps.optimizer])
    watch = StepWatch(steps.net, [steps.optimizer]).__enter__()

    def step() -> None:
        steps.step()
        assert freeze.drifts() == []
        assert watch.findings() == []

    return step


@pytest.mark.parametrize("build", [_audited, _guarded, _searched, _watched])
def test_ten_thousand_steps_take_no_memory(build: Callable[[Steps], Callable[[], None]]) -> None:
    step = build(Steps())
    for _ in range(WARM):
        step()
    objects, most = _memory()
    for _ in range(STEPS - WARM):
        step()
    more_objects, more = _memory()
    assert more_objects - objects < 100
    assert more - most < 8 << 10


class Sampled(FlowAudit):
    """Notes the memory at batch 1,000 and at the last."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1)
        self.memory: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.batches in (WARM, STEPS):
            self.memory.append(_memory())


@pytest.mark.filterwarnings("ignore:FreezeAudit. nothing is frozen")
def test_ten_thousand_batches_under_all_callbacks() -> None:
    callback = Sampled()
    fit(Gan(), callback, FreezeAudit(), RetentionAudit(), batches=STEPS)
    (objects, most), (more_objects, more) = callback.memory
    assert more_objects - objects < 100
    assert more - most < 8 << 10


def _deep() -> tuple[nn.Module, nn.Module]:
    """2,000 modules in each other, and the one in their middle."""
    net: nn.Module = nn.Linear(2, 2)
    middle = net
    for level in range(DEEP):
        outer = nn.Module()
        outer.inner, outer.scale = net, nn.Parameter(torch.ones(1))
        outer.register_buffer("offset", torch.zeros(1))
        net = outer
        middle = net if level == DEEP // 2 else middle
    return net, middle


def test_a_frozen_parameter_in_the_middle_of_two_thousand_modules() -> None:
    net, middle = _deep()
    for _, module in ((0, net), (1, middle)):
        module.scale.requires_grad_(False)
    with FreezeWatch({"net": net}, [SGD([middle.scale], 0.1)]) as watch:
        assert watch.drifts() == []
        with torch.no_grad():
            middle.scale += 1
            middle.offset -= 1
        middle.inner = nn.Linear(2, 2)
    found = watch.drifts()
    path = "net" + ".inner" * (DEEP - DEEP // 2 - 1)
    assert [(d.kind, d.name) for d in found if d.kind in ("parameter", "buffer")] == [
        ("parameter", f"{path}.scale"),
        ("buffer", f"{path}.offset"),
    ]
    assert {d.kind for d in found} == {"parameter", "buffer", "added", "removed"}
    assert len([d for d in found if d.kind == "added"]) == 2


def test_a_kept_graph_in_the_middle_of_two_thousand_modules() -> None:
    net, middle = _deep()
    middle.kept = [torch.ones(2, requires_grad=True) * 2]  # pyright: ignore[reportArgumentType]
    (kept,) = kept_graphs({"net": net})
    assert kept.path == "net" + ".inner" * (DEEP - DEEP // 2 - 1) + ".kept"


def test_findings_and_frozen_modules_of_two_thousand_modules() -> None:
    net, middle = _deep()
    optimizer = SGD([middle.scale], 0.1)  # pyright: ignore[reportArgumentType]
    with StepWatch(net, [optimizer]) as watch:
        (middle.scale * net.scale).backward()  # pyright: ignore[reportCallIssue, reportOperatorIssue]
        optimizer.step()
    (found,) = watch.findings()
    assert (found.name, found.evidence) == ("unstepped_parameter", ("scale",))
    nodes: list[nn.Module] = [middle]
    while nodes:
        module = nodes.pop()
        nodes += module.children()
        for p in module.parameters(recurse=False):
            p.requires_grad_(False)
    assert list(frozen_modules({"net": net})) == [".".join(["inner"] * (DEEP - DEEP // 2 - 1))]
