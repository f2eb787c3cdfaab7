"""no_grad, enable_grad, set_grad_enabled, inference_mode: nesting, context and decorator, what is born inside."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from stopgrad.cuts.torch_internals import version_of

X = torch.ones(2, requires_grad=True)


def double() -> torch.Tensor:
    return X * 2


@pytest.mark.parametrize(
    ("mode", "recorded"),
    [
        (torch.no_grad, False),
        (torch.enable_grad, True),
        (lambda: torch.set_grad_enabled(False), False),
        (lambda: torch.set_grad_enabled(True), True),
        (torch.inference_mode, False),
        (lambda: torch.inference_mode(False), True),
    ],
)
def test_context_and_decorator_agree(mode, recorded):
    with mode():
        assert double().requires_grad is recorded
    assert torch.is_grad_enabled()
    assert mode()(double)().requires_grad is recorded
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("outer", "inner", "recorded"),
    [
        (torch.no_grad, torch.enable_grad, True),
        (torch.enable_grad, torch.no_grad, False),
        (torch.no_grad, torch.no_grad, False),
        (torch.inference_mode, torch.enable_grad, False),  # the grad mode is on, and an inference tensor all the same
        (torch.inference_mode, lambda: torch.inference_mode(False), True),
        (torch.no_grad, lambda: torch.inference_mode(False), True),  # leaving inference mode turns the grad mode on
    ],
)
def test_the_innermost_mode_decides_with_one_exception(outer, inner, recorded):
    with outer():
        with inner():
            assert double().requires_grad is recorded
        assert torch.is_grad_enabled() is (outer is torch.enable_grad)


def test_enable_grad_inside_inference_mode_is_on_and_still_records_nothing():
    with torch.inference_mode(), torch.enable_grad():
        assert torch.is_grad_enabled()
        y = double()
        assert y.is_inference()
        assert y.grad_fn is None


def test_set_grad_enabled_works_as_a_plain_call():
    torch.set_grad_enabled(False)
    try:
        assert not double().requires_grad
    finally:
        torch.set_grad_enabled(True)
    assert double().requires_grad


def test_modes_are_restored_after_an_exception():
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        1 / 0  # noqa: B018
    assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), torch.inference_mode():
        1 / 0  # noqa: B018
    assert not torch.is_inference_mode_enabled()


def test_modes_belong_to_a_thread():
    seen = []
    with torch.no_grad():
        thread = threading.Thread(target=lambda: seen.append(torch.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_decorated_generator_keeps_the_mode_inside_and_gives_it_back_between():
    @torch.no_grad()
    def values():
        yield double().requires_grad
        yield double().requires_grad

    seen = []
    for inside in values():
        seen.append((inside, torch.is_grad_enabled()))
    assert seen == [(False, True), (False, True)]


def test_what_is_made_with_the_flag_inside_no_grad_keeps_it():
    with torch.no_grad():
        w = torch.ones(2, requires_grad=True)
        layer = nn.Linear(2, 2)
    assert w.requires_grad
    assert layer.weight.requires_grad


def test_inputs_keep_their_flag_inside():
    with torch.no_grad():
        assert X.requires_grad
    with torch.inference_mode():
        assert X.requires_grad


def test_what_no_grad_made_can_be_trained_on():
    with torch.no_grad():
        t = double()
    w = torch.ones(2, requires_grad=True)
    (w * t).sum().backward()
    assert w.grad.tolist() == [2.0, 2.0]


def test_a_view_made_in_no_grad_cannot_be_written_outside():
    x = torch.ones(2, requires_grad=True) * 1
    with torch.no_grad():
        view = x.view(2)
    with pytest.raises(RuntimeError, match=r"^A view was created in no_grad mode and is being modified inplace"):
        view.add_(1)


@pytest.fixture
def inference_tensor():
    with torch.inference_mode():
        return torch.ones(2) * 2


def test_inference_tensors_carry_no_version(inference_tensor):
    assert inference_tensor.is_inference()
    with pytest.raises(RuntimeError, match=r"^Inference tensors do not track version counter"):
        _ = version_of(inference_tensor)


SAVED = {
    "product": lambda w, t: w * t,
    "linear": lambda w, t: nn.functional.linear(t, w.view(1, 2)),
    "mse_loss": lambda w, t: nn.functional.mse_loss(w, t),
    "power": lambda w, t: t**w,
    "convolution": lambda w, t: nn.functional.conv1d(t.view(1, 1, 2), w.view(1, 1, 2)),
}
NOT_SAVED = {
    "sum": (lambda w, t: w + t, [1.0, 1.0]),
    "difference squared": (lambda w, t: (w - t) ** 2, [-2.0, -2.0]),
    "cat": (lambda w, t: torch.cat([w, t]), [1.0, 1.0]),
    "cat, inference first": (lambda w, t: torch.cat([t, w]), [1.0, 1.0]),
    "where": (lambda w, t: torch.where(torch.tensor([True, False]), w, t), [1.0, 0.0]),
}


@pytest.mark.parametrize("name", SAVED)
def test_inference_tensors_that_must_be_saved_raise(name, inference_tensor):
    with pytest.raises(RuntimeError, match=r"^Inference tensors cannot be saved for backward"):
        SAVED[name](torch.ones(2, requires_grad=True), inference_tensor)


@pytest.mark.parametrize("name", NOT_SAVED)
def test_inference_tensors_that_need_not_be_saved_pass(name, inference_tensor):
    consumer, gradient = NOT_SAVED[name]
    w = torch.ones(2, requires_grad=True)
    consumer(w, inference_tensor).sum().backward()
    assert w.grad.tolist() == gradient


def test_a_write_to_an_inference_tensor_outside_raises_after_writing(inference_tensor):
    with pytest.raises(RuntimeError, match=r"^Inplace update to inference tensor outside InferenceMode is not allowed"):
        inference_tensor.add_(1)
    assert inference_tensor.tolist() == [
        3.0,
        3.0,
    ]  # refused, and by then written: the error comes with the version bump
    with torch.inference_mode():
        inference_tensor.add_(1)
    assert inference_tensor.tolist() == [4.0, 4.0]


def test_inference_tensors_take_no_flag_outside(inference_tensor):
    with pytest.raises(RuntimeError, match=r"^Setting requires_grad=True on inference tensor outside InferenceMode"):
        inference_tensor.requires_grad_()


def test_detach_keeps_an_inference_tensor_and_clone_frees_it(inference_tensor):
    assert inference_tensor.detach().is_inference()
    copy = inference_tensor.clone()
    assert not copy.is_inference()
    (torch.ones(2, requires_grad=True) * copy).sum().backward()


def test_a_view_of_a_normal_tensor_made_in_inference_mode_is_normal():
    x = torch.ones(2)
    with torch.inference_mode():
        assert not x.view(2).is_inference()
        assert (x * 1).is_inference()


def test_normal_tensors_may_be_written_in_inference_mode():
    x = torch.ones(2)
    with torch.inference_mode():
        x.add_(1)
    assert x.tolist() == [2.0, 2.0]
    assert version_of(x) == 1


def test_parameters_born_in_inference_mode_are_not_trainable():
    with torch.inference_mode():
        layer = nn.Linear(2, 1)
    assert layer.weight.is_inference()
    with pytest.raises(RuntimeError, match=r"^Inference tensors cannot be saved for backward"):
        layer(torch.ones(1, 2, requires_grad=True))
