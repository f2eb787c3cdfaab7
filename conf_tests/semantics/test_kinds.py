"""Cuts on other kinds of tensor: complex, sparse, nested, subclasses, the meta device, double, empty."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stopgrad.cuts.torch_internals import version_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors is in prototype"
)


def test_complex_detach():
    z = torch.tensor([1 + 2j], requires_grad=True)
    (z.detach() * z).real.sum().backward()
    assert z.grad.tolist() == [1 - 2j]  # the conjugate of the constant


def test_real_of_complex_is_a_view():
    z = torch.tensor([1 + 2j], requires_grad=True) * 1
    with pytest.raises(RuntimeError, match=r"Can't detach views in-place"):
        z.real.detach_()
    z.detach().real.zero_()
    assert z.tolist() == [2j]


def test_complex_needs_no_flag_trick():
    assert torch.zeros(1, dtype=torch.cfloat).requires_grad_().requires_grad


@pytest.mark.parametrize("to_sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
def test_sparse_detach(to_sparse):
    x = torch.eye(2, requires_grad=True)
    s = to_sparse(x)
    assert s.requires_grad
    d = s.detach()
    assert not d.requires_grad
    assert d.layout == s.layout
    assert d.values().data_ptr() == s.detach().values().data_ptr()


def test_values_of_a_sparse_tensor_are_no_cut():
    assert torch.eye(2, requires_grad=True).to_sparse().coalesce().values().requires_grad


def test_nested_detach():
    parts = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    n = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    d = n.detach()
    assert n.requires_grad
    assert not d.requires_grad
    assert d.values().data_ptr() == n.values().data_ptr()
    (n * d).values().sum().backward()
    assert parts[1].grad.tolist() == [1.0] * 3


class Tagged(torch.Tensor):
    pass


def test_a_subclass_survives_detach_and_loses_attributes():
    x = torch.ones(2).as_subclass(Tagged).requires_grad_()
    x.tag = "mine"
    assert type(x.detach()) is Tagged
    assert not hasattr(x.detach(), "tag")
    assert type(x.data) is Tagged
    assert type(x.clone()) is Tagged


def test_a_parameter_becomes_a_plain_tensor():
    p = nn.Parameter(torch.ones(2))
    assert [type(t) for t in (p.detach(), p.data, p.clone())] == [torch.Tensor] * 3


def test_meta_tensors_have_the_same_graph_and_no_numbers():
    x = torch.ones(2, device="meta", requires_grad=True)
    y = x * 2
    assert y.requires_grad
    assert not y.detach().requires_grad
    y.sum().backward()
    assert x.grad.device.type == "meta"
    with pytest.raises(RuntimeError, match=r"Tensor\.item\(\) cannot be called on meta tensors"):
        x.sum().item()


def test_meta_tensors_share_the_version_counter():
    x = torch.ones(2, device="meta")
    x.detach().add_(1)
    assert version_of(x) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    x = torch.ones(2, dtype=dtype, requires_grad=True)
    assert x.detach().dtype is x.data.dtype is dtype


def test_a_cast_is_no_cut():
    x = torch.ones(2, requires_grad=True)
    x.double().sum().backward()
    assert x.grad.dtype is torch.float32
    assert x.to(torch.float32) is x


def test_a_cast_to_integers_is_a_cut():
    assert not torch.ones(2, requires_grad=True).long().requires_grad


def test_empty_tensors_are_cut_like_others():
    x = torch.ones(0, requires_grad=True)
    assert not x.detach().requires_grad
    x.sum().backward()
    assert x.grad.shape == (0,)


def test_buffers_take_part_unless_cut():
    module = nn.Module()
    w = torch.ones(2, requires_grad=True)
    module.register_buffer("state", w * 2)
    assert module.state.requires_grad
    assert not module.state_dict()["state"].requires_grad  # state_dict detaches
    assert module.state_dict(keep_vars=True)["state"].requires_grad


def test_state_dict_shares_storage():
    layer = nn.Linear(1, 1)
    layer.state_dict()["weight"].fill_(7.0)
    assert layer.weight.item() == 7
