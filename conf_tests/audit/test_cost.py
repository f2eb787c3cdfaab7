"""What an audit leaves out because it would say nothing; that the rest says the same is told by the other files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stopgrad.audits.steps import StepWatch
from stopgrad.flow.measure import zero_parameters


@pytest.mark.parametrize(
    ("values", "zero"),
    [
        ([0.0, 0.0], True),
        ([0.0, 1.0], False),
        ([1.0, 0.0], False),
        ([-0.0, 0.0], True),
        ([-1e-13, -1.0], False),
        ([1e-30, 1e-30], True),  # whose norm is zero in single precision: so it was told before one element was asked
        ([1e-10, 0.0], False),
        ([math.nan, 0.0], False),
        ([math.inf, 0.0], False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_zeros(values: list[float], zero: bool, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.tensor(values, dtype=dtype))
    turned = nn.Parameter(torch.tensor([values, values], dtype=dtype).t())
    assert zero_parameters([parameter, turned]) == ({id(parameter), id(turned)} if zero else set())


def test_of_parameters_of_zeros_only_some_are_asked() -> None:
    scalar, empty, held = (
        nn.Parameter(torch.zeros(())),
        nn.Parameter(torch.zeros(0)),
        nn.Parameter(torch.zeros(2), False),
    )
    sparse = torch.zeros(2).to_sparse().requires_grad_()
    base = torch.tensor([1.0, 0.0])
    part = nn.Parameter(base[1:])  # the first element is its own, not that of its memory
    assert zero_parameters([scalar, empty, held, sparse, part]) == {id(scalar), id(sparse), id(part)}


def test_a_training_of_which_nothing_is_to_be_said_needs_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with StepWatch(net, [torch.optim.SGD(net.parameters(), lr=0.1)]) as watch:
        net(torch.ones(1, 2)).sum().backward()
        watch.optimizers[0].step()
    assert watch.reached
    with monkeypatch.context() as patch:
        patch.setattr(StepWatch, "_names", lambda _: pytest.fail("it asked for names"))
        patch.setattr(StepWatch, "_still", lambda *_: pytest.fail("it summed parameters"))
        assert watch.findings(over=False) == []


@pytest.mark.filterwarnings("ignore:optimizer contains:UserWarning")
def test_a_parameter_that_is_listed_twice_is_told_before_the_end() -> None:
    net = nn.Linear(2, 1)
    with StepWatch(net, [torch.optim.SGD([net.weight, net.bias, net.bias], lr=0.1)]) as watch:
        assert [finding.name for finding in watch.findings(over=False)] == ["listed_twice"]


def test_of_two_that_no_optimizer_holds_the_one_that_is_moved_by_hand_is_none() -> None:
    net = nn.ModuleDict({"held": nn.Linear(1, 1), "by_hand": nn.Linear(1, 1), "lost": nn.Linear(1, 1)})
    optimizer = torch.optim.SGD(net["held"].parameters(), lr=0.1)
    with StepWatch(net, [optimizer]) as watch:
        sum(net[name](torch.ones(1, 1)).sum() for name in net).backward()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        with torch.no_grad():
            for p in net["by_hand"].parameters():
                p.sub_(0.1)
    (finding,) = watch.findings(over=False)
    assert finding.evidence == ("lost.weight", "lost.bias")
