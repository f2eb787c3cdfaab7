"""The stops of a source: all of them, by line, with what they stop, and nothing else."""

from __future__ import annotations

import pytest

from stopgrad.rewrite.stops import LEGAL, stops_of

SOURCE = """\
import torch
from torch import no_grad, autograd

@torch.no_grad()
def evaluate(x): return x

@torch.no_grad
def bare(x): return x

def step(net, other, x, flag):
    a, b = x.detach(), net(x).detach()
    c = torch.detach(x) + torch.Tensor.detach(b)
    x.detach_()
    net.weight.data.add_(x.data)
    net.weight.data = x
    with torch.no_grad(), open(__file__) as file:
        target = net(x)
        more = target
    with no_grad():
        print(x)
    context = torch.inference_mode() if flag else torch.enable_grad()
    torch.set_grad_enabled(False)
    torch.set_grad_enabled(True)
    torch.set_grad_enabled(flag)
    net.requires_grad_(False)
    net.requires_grad_()
    net.requires_grad_(True)
    for p in net.parameters():
        p.requires_grad = False
        p.requires_grad = True
    net.zero_grad(set_to_none=True)
    g = torch.autograd.grad(x.sum(), x)
    g = autograd.grad(x.sum(), x, create_graph=True)
    g = autograd.grad(x.sum(), x, create_graph=False)
    torch.set_grad_enabled(mode=flag)
    return [y.detach() for y in (x, x)], (lambda y: y.detach() + y.detach())(x)
"""

EXPECTED = [
    ("4", "no_grad", "evaluate"),
    ("7", "no_grad", "bare"),
    ("11:x", "detach", "x"),
    ("11:net(x)", "detach", "net(x)"),
    ("12:x", "detach", "x"),
    ("12:b", "detach", "b"),
    ("13", "detach_", "x"),
    ("14:net.weight", "data", "net.weight"),
    ("14:x", "data", "x"),
    ("16", "no_grad", "target, more"),
    ("19", "no_grad", "print(x)"),
    ("21", "inference_mode", ""),
    ("22", "set_grad_enabled", ""),
    ("24", "set_grad_enabled", ""),
    ("25", "requires_grad_", "net"),
    ("29", "requires_grad", "p"),
    ("31", "zero_grad", "net"),
    ("32", "autograd.grad", "x.sum()"),
    ("34", "autograd.grad", "x.sum()"),
    ("35", "set_grad_enabled", ""),
    ("36:y#1", "detach", "y"),
    ("36:y#2", "detach", "y"),
    ("36:y#3", "detach", "y"),
]


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source.py"
    file.write_text(SOURCE)
    return str(file)


def test_all_stops_and_nothing_else(source, tmp_path):
    assert [(stop.id, stop.kind, stop.value) for stop in stops_of(source, str(tmp_path))] == EXPECTED


def test_a_stop_is_named_from_home_where_it_lies_below(source, tmp_path):
    assert stops_of(source, str(tmp_path))[0].name == "source.py:4"
    assert stops_of(source, str(tmp_path.parent))[0].name == f"{tmp_path.name}/source.py:4"
    assert stops_of(source, str(tmp_path / "elsewhere"))[0].name == f"{source}:4"


def test_only_a_call_can_be_put_under_no_grad(source, tmp_path):
    legal = {stop.id: stop.legal for stop in stops_of(source, str(tmp_path))}
    assert legal["11:x"] == LEGAL["detach"]
    assert legal["11:net(x)"] == [*LEGAL["detach"], "no_grad", "inference_mode", "freeze"]
    assert legal["13"] == ["detach_", "none"]
