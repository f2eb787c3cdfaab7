"""Reports of one text that has several causes: ``explain`` names the one that it is, first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stopgrad.museum.explain import find

WAYS: dict[str, tuple[str, Callable[[], object]]] = {}


def _way(exhibit: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def keep(run: Callable[[], object]) -> Callable[[], object]:
        WAYS[run.__name__] = exhibit, run
        return run

    return keep


@_way("hook_inplace")
def _activation_behind_a_full_backward_hook() -> object:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    net[0].register_full_backward_hook(lambda *args: None)
    return net(torch.randn(2, 3))


@_way("view_no_grad")
def _view_made_under_no_grad() -> object:
    x = torch.ones(3, requires_grad=True) * 1
    with torch.no_grad():
        view = x[:2]
    return view.mul_(2)


@_way("unbind_inplace")
def _row_of_an_iteration() -> object:
    rows = list(torch.ones(3, 2, requires_grad=True) * 1)
    return rows[0].mul_(2)


@_way("checkpoint_thawed")
def _thawed_between_forward_and_backward() -> object:
    critic = nn.Linear(3, 3).requires_grad_(False)
    made = checkpoint(critic, torch.ones(3, requires_grad=True), use_reentrant=False)
    critic.requires_grad_(True)
    return made.sum().backward()  # pyright: ignore


@_way("frozen_in_grad")
def _gradient_at_what_is_frozen() -> object:
    net = nn.Linear(3, 1)
    net.bias.requires_grad_(False)
    return torch.autograd.grad(net(torch.ones(3)).sum(), list(net.parameters()))


@pytest.mark.parametrize("way", WAYS)
def test_the_cause_is_the_right_one(way: str) -> None:
    """https://github.com/pytorch/pytorch/issues/61519, https://github.com/f-dangel/singd/issues/56 and
    https://github.com/shap/shap/issues/3565: a hook's output is a view, and the activation writes to it;
    https://github.com/pytorch/pytorch/pull/26607, https://github.com/pytorch/pytorch/pull/103185 and
    https://github.com/ccarliu/m3ae/issues/15: a view that was made under no_grad.
    """
    exhibit, run = WAYS[way]
    with pytest.raises(RuntimeError) as error:
        run()
    text = f"{type(error.value).__name__}: {error.value}"
    first, *_ = find(text)
    assert getattr(first, "name", first) == exhibit


def test_nothing_is_claimed_of_what_is_not_known() -> None:
    assert find("RuntimeError: a view was looked at, and is being modified by nobody") == []
