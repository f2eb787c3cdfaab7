"""Second derivatives and forward mode across a cut."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as fw

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")


def grad(y: torch.Tensor, x: torch.Tensor, **kwargs: bool) -> torch.Tensor:
    return torch.autograd.grad(y, x, **kwargs)[0]


def test_second_derivative():
    x = torch.tensor(2.0, requires_grad=True)
    first = grad(x**3, x, create_graph=True)
    assert first == 12
    assert grad(first, x) == 12


def test_a_detached_first_derivative_is_a_constant():
    x = torch.tensor(2.0, requires_grad=True)
    first = grad(x**3, x, create_graph=True).detach()
    assert not first.requires_grad
    (first * x).backward()
    assert x.grad == 12


def test_without_create_graph_the_first_derivative_is_a_constant():
    x = torch.tensor(2.0, requires_grad=True)
    first = grad(x**3, x)
    assert not first.requires_grad


def test_create_graph_under_no_grad_builds_it_all_the_same():
    x = torch.tensor(2.0, requires_grad=True)
    y = x**3
    with torch.no_grad():
        first = grad(y, x, create_graph=True)
    assert grad(first, x) == 12


def test_a_cut_inside_changes_each_order():
    x = torch.tensor(2.0, requires_grad=True)
    first = grad(x * (x * x).detach(), x, create_graph=True)  # c * x: c, and then nothing
    assert first == 4
    assert not first.requires_grad


def test_a_cut_factor_leaves_half_of_the_second_derivative():
    x = torch.tensor(2.0, requires_grad=True)
    first = grad(x**2 * x.detach(), x, create_graph=True)  # 2 c x
    assert first == 8
    assert grad(first, x) == 4  # 2 c, where x**3 has 6 x = 12


def test_hessian_of_the_straight_through_estimator_is_zero():
    x = torch.tensor(1.4, requires_grad=True)
    y = x + (x.round() - x).detach()
    first = grad(y, x, create_graph=True)
    assert y == 1
    assert first == 1
    assert not first.requires_grad


def tangent(f, at: float = 3.0) -> float | None:
    with fw.dual_level():
        out = fw.unpack_dual(f(fw.make_dual(torch.tensor(at), torch.tensor(1.0)))).tangent
        return None if out is None else out.item()


def test_forward_mode_is_cut_by_detach_and_data():
    assert tangent(lambda x: x * x) == 6
    assert tangent(lambda x: (x * x).detach()) is None
    assert tangent(lambda x: (x * x).data) is None
    assert tangent(lambda x: x * x.detach()) == 3


def test_forward_mode_is_cut_by_detach_in_place():
    assert tangent(lambda x: (x * x).detach_()) is None


def test_forward_mode_passes_through_no_grad():
    """no_grad stops the recording for backward only."""
    assert tangent(torch.no_grad()(lambda x: x * x)) == 6


def test_forward_mode_is_off_in_inference_mode():
    assert tangent(torch.inference_mode()(lambda x: x * x)) is None


def test_forward_over_reverse_across_a_cut():
    with fw.dual_level():
        x = torch.tensor(2.0, requires_grad=True)
        dual = fw.make_dual(x, torch.tensor(1.0))
        first = torch.autograd.grad(dual**2 * dual.detach(), dual, create_graph=True)[0]
        primal, tangent_of_first = fw.unpack_dual(first)
        assert primal == 8
        assert tangent_of_first == 4  # d(2 c x)/dx with c held
