"""Hooks and retain_grad on both sides of a cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def test_a_hook_before_the_cut_never_fires():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    fired = []
    y.register_hook(lambda g: fired.append(g.tolist()))
    w = torch.ones(2, requires_grad=True)
    (y.detach() * w).sum().backward()
    assert fired == []
    assert w.grad.tolist() == [2.0, 2.0]


def test_a_hook_on_the_cut_tensor_is_refused():
    with pytest.raises(RuntimeError, match=r"^cannot register a hook on a tensor that doesn't require gradient$"):
        torch.ones(2, requires_grad=True).detach().register_hook(print)


def test_a_hook_fires_for_the_live_path_only():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y.detach() * y).sum().backward()
    assert seen == [[2.0, 2.0]]  # d/dy of c*y, not of y*y


def test_detach_in_place_silences_an_earlier_hook_for_later_uses():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    early = y.sum()
    y.detach_()
    early.backward()
    assert seen == [[1.0, 1.0]]
    assert not (y * 2).requires_grad


def test_retain_grad_before_the_cut_stays_empty():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.retain_grad()
    (y.detach() * x).sum().backward()
    assert y.grad is None
    assert x.grad.tolist() == [2.0, 2.0]


def test_retain_grad_on_a_cut_tensor_is_refused():
    with pytest.raises(RuntimeError, match=r"^can't retain_grad on Tensor that has requires_grad=False$"):
        torch.ones(2).retain_grad()


def test_retain_grad_is_lost_by_detach():
    y = torch.ones(2, requires_grad=True) * 2
    y.retain_grad()
    assert y.retains_grad
    assert not y.detach().retains_grad


def test_a_hook_can_stop_a_gradient_and_leaves_zeros():
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(torch.zeros_like)
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]  # reached, and zero: not None


def test_full_backward_hook_of_a_frozen_module_fires_when_its_input_is_live():
    layer = nn.Linear(2, 1).requires_grad_(False)
    seen = []
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].tolist()))
    layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert seen == [[[1.0]]]


def test_post_accumulate_hook_does_not_fire_behind_a_cut():
    x = torch.ones(2, requires_grad=True)
    seen = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    ((x * 2).detach() * x).sum().backward()
    assert seen == [[2.0, 2.0]]


def test_saved_tensor_hooks_see_nothing_under_no_grad():
    packed = []
    x = torch.ones(2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.nbytes) or t, lambda t: t):
        with torch.no_grad():
            x.exp()
        assert packed == []
        x.exp().detach()
    assert packed == [8]
