"""detach and no_grad under torch.func, torch.compile, autocast and checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def cube_cut(x: torch.Tensor) -> torch.Tensor:
    return x**2 * x.detach()


def test_func_grad_respects_detach():
    assert torch.func.grad(cube_cut)(torch.tensor(2.0)) == 8


def test_func_grad_of_grad_respects_detach():
    assert torch.func.grad(torch.func.grad(cube_cut))(torch.tensor(2.0)) == 4


def test_func_grad_respects_no_grad_inside():
    def f(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            c = x * 1
        return x**2 * c

    assert torch.func.grad(f)(torch.tensor(2.0)) == 8


def test_func_grad_ignores_no_grad_outside():
    with torch.no_grad():
        assert torch.func.grad(lambda x: x**2)(torch.tensor(2.0)) == 4


def test_func_grad_refuses_item():
    with pytest.raises(RuntimeError, match=r"\.item\(\)"):
        torch.func.vmap(torch.func.grad(lambda x: x * x.item()))(torch.ones(2))


def test_func_grad_respects_detach_in_place():
    assert torch.func.grad(lambda x: (x * x).detach_() * x)(torch.tensor(3.0)) == 9


def test_vmap_over_detach():
    per_sample = torch.func.vmap(torch.func.grad(cube_cut))(torch.tensor([1.0, 2.0, 3.0]))
    assert per_sample.tolist() == [2.0, 8.0, 18.0]


def test_vmap_outside_autograd_keeps_the_cut():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    torch.func.vmap(cube_cut)(x).sum().backward()
    assert x.grad.tolist() == [2.0, 8.0]


def test_jvp_respects_detach():
    _, out = torch.func.jvp(cube_cut, (torch.tensor(2.0),), (torch.tensor(1.0),))
    assert out == 8


def test_functional_call_with_detached_weights():
    layer = nn.Linear(1, 1, bias=False)
    x = torch.ones(1, 1, requires_grad=True)
    frozen = {name: p.detach() for name, p in layer.named_parameters()}
    torch.func.functional_call(layer, frozen, (x,)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(x.grad, layer.weight.detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (cube_cut, 8.0),
        (lambda x: x * torch.no_grad()(lambda: x * x)(), 4.0),
        (lambda x: x + (x * x).detach_(), 1.0),
    ],
    ids=["detach", "no_grad", "detach_"],
)
def test_compiled_cuts_are_cuts(function, expected, backend):
    torch.compiler.reset()
    x = torch.tensor(2.0, requires_grad=True)
    torch.compile(function, backend=backend, fullgraph=True)(x).backward()
    assert x.grad == expected


def test_autocast_casts_and_the_cut_stays():
    layer = nn.Linear(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = layer(torch.ones(1, 2))
        out = layer(hidden.detach())
    assert hidden.dtype is torch.bfloat16
    assert hidden.detach().dtype is torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    assert torch.equal(layer.weight.grad[0], hidden[0].detach().float())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_keeps_a_cut(reentrant):
    x = torch.tensor(2.0, requires_grad=True)
    checkpoint(cube_cut, x, use_reentrant=reentrant).backward()
    assert x.grad == 8


def test_checkpoint_of_a_cut_input():
    layer = nn.Linear(1, 1, bias=False)
    x = torch.ones(1, 1, requires_grad=True)
    checkpoint(layer, x.detach(), use_reentrant=False).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0]]
    assert x.grad is None


def test_reentrant_checkpoint_of_a_cut_input_starves_its_block():
    layer = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match=r"^None of the inputs have requires_grad=True. Gradients will be None$"):
        out = checkpoint(layer, torch.ones(1, 1), use_reentrant=True)
    assert not out.requires_grad


def test_no_grad_inside_a_checkpoint_is_replayed():
    def block(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            c = x.exp()
        return x * c

    x = torch.zeros((), requires_grad=True)
    checkpoint(block, x, use_reentrant=False).backward()
    assert x.grad == 1
