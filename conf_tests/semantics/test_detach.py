"""detach, detach_, .data, clone and requires_grad_: aliases, version counters, views, order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stopgrad.cuts.torch_internals import is_view, version_of

INPLACE = "modified by an inplace operation"


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values or (1.0, 2.0, 3.0), requires_grad=True)


def test_detach_shares_the_version_counter():
    x = leaf() * 1
    y = x.detach()
    y.add_(1)
    assert (version_of(x), version_of(y)) == (1, 1)
    with torch.no_grad():
        x.add_(1)
    assert (version_of(x), version_of(y)) == (2, 2)


def test_data_has_a_counter_of_its_own():
    x = leaf() * 1
    y = x.data
    y.add_(1)
    assert (version_of(x), version_of(y)) == (0, 1)
    assert x.tolist() == [2.0, 3.0, 4.0]


def test_detach_of_data_follows_the_data():
    x = leaf() * 1
    y = x.data.detach()
    y.add_(1)
    assert version_of(x) == 0


def test_data_setter_keeps_the_version_and_swaps_the_storage():
    x = leaf()
    before, other = x.data_ptr(), torch.zeros(3)
    x.data = other
    assert x.data_ptr() == other.data_ptr() != before
    assert version_of(x) == 0
    assert x.requires_grad
    assert x.is_leaf


def test_set_data_between_forward_and_backward_is_silent_and_wrong():
    x = leaf(1.0)
    y = x * x
    x.data = torch.tensor([5.0])
    y.backward()
    assert x.grad.tolist() == [10.0]  # a saved leaf is the leaf itself: it reads its new storage


def test_write_through_data_between_forward_and_backward_is_silent_and_wrong():
    x = leaf(1.0)
    y = x * x
    x.data.fill_(5.0)
    y.backward()
    assert x.grad.tolist() == [10.0]  # at 1 it would have been 2


@pytest.mark.parametrize("saves", [torch.sigmoid, torch.tanh, torch.exp, torch.relu])
def test_write_to_a_saved_output_raises(saves):
    x = leaf()
    y = saves(x)
    y.detach().zero_()
    with pytest.raises(RuntimeError, match=INPLACE):
        y.sum().backward()


@pytest.mark.parametrize(
    ("saves_nothing", "slope"), [(lambda x: x + 1, 1.0), (lambda x: x * 3, 3.0), (torch.neg, -1.0)]
)
def test_write_to_an_output_that_was_not_saved_is_harmless(saves_nothing, slope):
    x = leaf()
    y = saves_nothing(x)
    y.detach().zero_()
    y.sum().backward()
    assert x.grad.tolist() == [slope] * 3


def test_detach_of_a_view_shares_storage_and_counter():
    x = leaf() * 1
    x[1:].detach().zero_()
    assert x.tolist() == [1.0, 0.0, 0.0]
    assert version_of(x) == 1


def test_a_detached_view_is_no_view_to_autograd():
    x = leaf() * 1
    cut = x[1:].detach()
    assert is_view(x[1:])
    assert not is_view(cut)
    assert cut.detach_() is cut
    assert cut.data_ptr() == x[1:].data_ptr()


def test_detach_does_not_copy_grad_or_hooks():
    x = leaf()
    x.sum().backward()
    x.register_hook(lambda g: g * 100)
    y = x.detach().requires_grad_()
    y.sum().backward()
    assert y.grad.tolist() == [1.0] * 3
    assert x.grad.tolist() == [1.0] * 3


def test_detach_of_a_tensor_without_graph_is_still_a_new_object():
    x = torch.ones(2)
    assert x.detach() is not x
    assert x.detach().data_ptr() == x.data_ptr()


def test_detach_of_a_parameter_is_a_plain_tensor():
    p = nn.Parameter(torch.ones(2))
    assert type(p.detach()) is torch.Tensor
    assert type(p.data) is torch.Tensor


def test_detach_in_place_on_a_leaf_drops_the_flag():
    x = leaf()
    assert x.detach_() is x
    assert not x.requires_grad
    assert x.is_leaf


def test_detach_in_place_on_a_leaf_keeps_its_grad():
    x = leaf()
    (x * 2).sum().backward()
    x.detach_()
    assert x.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "view", [lambda t: t[:1], lambda t: t.chunk(3)[0], lambda t: t.view(3, 1), lambda t: t.unbind()[0], torch.t]
)
def test_detach_in_place_on_a_view_is_refused(view):
    with pytest.raises(RuntimeError, match=r"^Can't detach views in-place\. Use detach\(\) instead\."):
        view(leaf() * 2).detach_()


def test_detach_in_place_on_a_view_of_plain_data_is_refused_too():
    with pytest.raises(RuntimeError, match=r"Can't detach views in-place"):
        torch.ones(3)[:1].detach_()


def test_flatten_of_a_matrix_is_the_matrix():
    x = torch.ones(2, 3) * 2
    assert x.flatten(1) is x
    assert x.flatten(1).detach_() is x
    assert is_view(torch.ones(2, 3, 1).flatten(1))


def test_detach_in_place_before_use_cuts():
    x = leaf()
    y = (x * 2).detach_()
    loss = (y * x).sum()
    loss.backward()
    assert x.grad.tolist() == [2.0, 4.0, 6.0]  # y as a constant


def test_detach_in_place_after_use_leaves_the_recorded_path():
    x = leaf()
    y = x * 2
    s = y.sum()
    y.detach_()
    (s + y.sum()).backward()
    assert x.grad.tolist() == [2.0] * 3


def test_detach_in_place_before_reuse_starves_the_second_use():
    x = leaf()
    y = x * 2
    first = y.detach_().sum()
    assert not first.requires_grad
    with pytest.raises(RuntimeError, match=r"does not require grad"):
        y.sum().backward()


def test_views_taken_before_detach_in_place_stay_live():
    x = leaf()
    y = x * 2
    view = y[:2]
    y.detach_()
    view.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 0.0]


def test_clone_carries_the_gradient_and_no_version():
    x = leaf()
    y = x.clone()
    y.data.zero_()
    assert x.tolist() == [1.0, 2.0, 3.0]
    assert version_of(y) == 0
    assert type(y.grad_fn).__name__ == "CloneBackward0"


def test_clone_before_write_keeps_backward_right():
    x = leaf(0.0)
    y = x.sigmoid()
    y.clone().detach().zero_()
    y.backward()
    assert x.grad.item() == 0.25


def test_detach_clone_and_clone_detach_agree():
    x = leaf()
    a, b = x.detach().clone(), x.clone().detach()
    assert torch.equal(a, b)
    assert a.data_ptr() != b.data_ptr() != x.data_ptr()
    assert (a.grad_fn, b.grad_fn) == (None, None)


def test_requires_grad_on_a_detached_leaf_starts_a_new_graph():
    x = leaf()
    y = (x * 2).detach().requires_grad_()
    assert y.is_leaf
    (y**2).sum().backward()
    assert y.grad.tolist() == [4.0, 8.0, 12.0]
    assert x.grad is None


def test_requires_grad_false_on_a_computed_tensor_is_refused():
    with pytest.raises(RuntimeError, match=r"^you can only change requires_grad flags of leaf variables"):
        (leaf() * 2).requires_grad_(False)


def test_requires_grad_true_on_a_computed_tensor_changes_nothing():
    y = leaf() * 2
    assert y.requires_grad_() is y
    assert not y.is_leaf


def test_integers_cannot_require_grad():
    with pytest.raises(RuntimeError, match=r"^only Tensors of floating point dtype can require gradients$"):
        torch.ones(2, dtype=torch.long).requires_grad_()


def test_write_to_a_leaf_needs_no_grad():
    x = leaf()
    with pytest.raises(
        RuntimeError, match=r"^a leaf Variable that requires grad is being used in an in-place operation"
    ):
        x.add_(1)
    with torch.no_grad():
        x.add_(1)
    assert x.tolist() == [2.0, 3.0, 4.0]
    assert x.is_leaf


def test_detached_weights_follow_the_optimiser():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    alias, copy = model.weight.detach(), model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert torch.equal(alias, model.weight)
    assert torch.equal(copy - model.weight, torch.ones(1, 2))
