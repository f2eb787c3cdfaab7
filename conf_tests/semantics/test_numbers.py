"""item, tolist, float(), numpy and __array__: how a value leaves the graph."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from stopgrad.cuts.torch_internals import version_of

NUMPY = r"^Can't call numpy\(\) on Tensor that requires grad\. Use tensor\.detach\(\)\.numpy\(\) instead\.$"
SCALAR = "^Converting a tensor with requires_grad=True to a scalar may lead to unexpected behavior"


@pytest.fixture(autouse=True)
def _warn_each_time():
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def live(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True) * 1


def test_item_and_tolist_leave_without_a_word():
    assert live(2.5).item() == 2.5
    assert type(live(2.5).item()) is float
    assert live(1.0, 2.0).tolist() == [1.0, 2.0]
    assert type(torch.tensor(3).item()) is int
    assert type(torch.tensor(1j).item()) is complex


def test_item_takes_one_element_of_any_shape():
    assert torch.ones(1, 1, 1).item() == 1.0
    with pytest.raises(RuntimeError, match=r"^a Tensor with 2 elements cannot be converted to Scalar$"):
        live(1.0, 2.0).item()


@pytest.mark.parametrize("convert", [float, complex, math.sqrt, lambda t: torch.tensor([t])])
def test_python_conversions_warn(convert):
    with pytest.warns(UserWarning, match=SCALAR):
        convert(live(4.0).sum())


@pytest.mark.parametrize("convert", [float, int, complex, math.sqrt, bool, str, lambda t: f"{t:.2f}"])
def test_a_detached_scalar_does_not_warn(convert):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(live(4.0).sum().detach())
    assert said == []


@pytest.mark.parametrize("convert", [int, bool, str, lambda t: f"{t:.2f}", lambda t: t.item(), lambda t: t.tolist()])
def test_these_conversions_never_warn(convert):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(live(4.0).sum())
    assert said == []


def test_a_number_is_a_constant_to_autograd():
    x = torch.tensor(3.0, requires_grad=True)
    (x * x.item()).backward()
    assert x.grad == 3.0  # not 6


def test_numpy_refuses_a_graph():
    with pytest.raises(RuntimeError, match=NUMPY):
        live(1.0).numpy()
    with pytest.raises(RuntimeError, match=NUMPY):
        np.sum([live(1.0).sum(), live(2.0).sum()])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy 2 with torch's __array__
def test_array_protocol_refuses_a_graph():
    with pytest.raises(RuntimeError, match=NUMPY):
        np.asarray(live(1.0))


def test_numpy_of_a_result_of_no_grad_is_free():
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert (x * 2).numpy().tolist() == [2.0, 2.0]
        assert x.numpy().tolist() == [1.0, 1.0]  # the flag is refused only while the grad mode is on
    with pytest.raises(RuntimeError, match=NUMPY):
        x.numpy()


def test_numpy_shares_memory_and_no_version():
    x = torch.ones(2)
    array = x.numpy()
    array[0] = 5
    assert x.tolist() == [5.0, 1.0]
    assert version_of(x) == 0
    x[1] = 7
    assert array.tolist() == [5.0, 7.0]


def test_force_detaches_and_shares_on_a_cpu():
    x = live(1.0, 2.0)
    array = x.numpy(force=True)
    array[0] = 9
    assert x[0] == 9


def test_a_write_through_numpy_corrupts_backward_in_silence():
    x = torch.zeros(1, requires_grad=True)
    y = x.exp()
    y.detach().numpy()[0] = 100.0
    y.backward()
    assert x.grad == 100.0  # not 1


def test_from_numpy_starts_without_a_graph():
    x = live(1.0)
    back = torch.from_numpy(x.detach().numpy())
    assert not back.requires_grad
    assert back.data_ptr() == x.data_ptr()


def test_torch_tensor_of_a_live_tensor_copies_and_warns():
    x = live(1.0)
    with pytest.warns(UserWarning, match=r"^To copy construct from a tensor, it is recommended to use"):
        y = torch.tensor(x)
    assert not y.requires_grad
    assert y.data_ptr() != x.data_ptr()


def test_as_tensor_of_a_live_tensor_is_the_tensor():
    x = live(1.0)
    assert torch.as_tensor(x) is x


def test_comparison_and_argmax_have_no_gradient():
    x = live(1.0, 2.0)
    assert not (x > 1).requires_grad
    assert not x.argmax().requires_grad
    assert x.max(0).values.requires_grad


@pytest.mark.parametrize("step", [torch.round, torch.floor, torch.sign])
def test_steps_have_a_gradient_of_exactly_zero(step):
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    step(x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]
