"""One small model per rule of PyTorch's autograd. Part ``a`` is judged; the marked line is where its gradient stops.

Each case computes a loss from two linear layers, ``a`` and ``b``, and an input ``x``. It declares the state of ``a``,
the kind of cut, and marks the cut's line with ``# cut``. Nothing here knows of the audit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stopgrad import Boundary


@dataclass
class Case:
    name: str
    compute: Callable[[nn.Linear, nn.Linear, Tensor], Tensor]
    state: str
    kind: str | None

    @property
    def line(self) -> int | None:
        """The line marked ``# cut``; the marks ``# cut`` are unique in a case."""
        lines, start = inspect.getsourcelines(self.compute)
        marked = [start + i for i, text in enumerate(lines) if text.rstrip().endswith("# cut")]
        return marked[0] if marked else None


CASES: list[Case] = []


def case(state: str, kind: str | None = None) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def add(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        CASES.append(Case(compute.__name__, compute, state, kind))
        return compute

    return add


# ---- each cut alone


@case("blocked", "detach")
def detach(a, b, x):
    h = a(x).relu().detach()  # cut
    return b(h).square().mean()


@case("blocked", "detach")
def torch_detach(a, b, x):
    h = torch.detach(a(x))  # cut
    return b(h).square().mean()


@case("blocked", "detach_")
def detach_in_place(a, b, x):
    h = a(x)
    h.detach_()  # cut
    return b(h).square().mean()


@case("blocked", "data")
def data(a, b, x):
    h = a(x).data  # cut
    return b(h).square().mean()


@case("blocked", "data")
def data_assigned(a, b, x):
    h = torch.zeros(5, 4)
    h.data = a(x)  # cut
    return b(h).square().mean()


@case("blocked", "no_grad")
def no_grad_block(a, b, x):
    with torch.no_grad():
        h = a(x)
        h = h.relu() + 1  # cut
    return b(h).square().mean()


@case("blocked", "no_grad")
def no_grad_decorator(a, b, x):
    @torch.no_grad()
    def target():
        return a(x).tanh()  # cut

    return (b(x) - target()).square().mean()


@case("blocked", "no_grad")
def set_grad_enabled(a, b, x):
    with torch.set_grad_enabled(False):
        h = a(x)  # cut
    return b(h).square().mean()


@case("blocked", "inference_mode")
def inference_mode(a, b, x):
    with torch.inference_mode():
        h = a(x)  # cut
    return (b(x) + h).square().mean()


@case("blocked", "no_derivative")
def argmax(a, b, x):
    index = a(x).argmax(dim=1)  # cut
    return b(x).gather(1, index[:, None]).mean()


@case("blocked", "no_derivative")
def cast_to_int(a, b, x):
    h = (10 * a(x)).long()  # cut
    return (b(x) * h).square().mean()


@case("blocked", "no_derivative")
def comparison(a, b, x):
    mask = a(x) > 0  # cut
    return (b(x) * mask).sum()


@case("blocked", "no_derivative")
def top_k_indices(a, b, x):
    _, index = a(x).topk(2, dim=1)  # cut
    return b(x).gather(1, index).mean()


@case("blocked", "no_derivative")
def sampled_index(a, b, x):
    action = torch.multinomial(a(x).softmax(dim=1), 1)  # cut
    return b(x).gather(1, action).mean()


@case("blocked", "no_derivative")
def gradient_without_create_graph(a, b, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(a(x).square().sum(), x)  # cut
    return (b(x) * slope).square().mean()


@case("blocked", "requires_grad")
def frozen_parameters(a, b, x):
    a.requires_grad_(False)
    return b(a(x)).square().mean()  # cut


@case("blocked", "torch.tensor")
def copied_by_torch_tensor(a, b, x):
    h = a(x)
    with __import__("warnings").catch_warnings(action="ignore"):
        h = torch.tensor(h)  # cut
    return b(h).square().mean()


@case("blocked", "detach")
def detached_then_made_a_leaf(a, b, x):
    h = a(x).detach().requires_grad_()  # cut
    return b(h).square().mean()


@case("blocked", "detach")
def detach_clone(a, b, x):
    h = a(x).detach().clone()  # cut
    return b(h).square().mean()


@case("blocked", "detach")
def detached_weights(a, b, x):
    return b(F.linear(x, a.weight.detach(), a.bias.detach())).square().mean()  # cut


@case("blocked", "detach")
def distribution_sample_of_detached_logits(a, b, x):
    logits = a(x).detach()  # cut
    return (b(x).log_softmax(1) * logits.softmax(1)).sum()


@case("blocked", "no_grad")
def distribution_sample(a, b, x):
    noisy = torch.distributions.Normal(a(x), 1.0).sample()  # cut
    return b(noisy).square().mean()


@case("open")
def distribution_rsample(a, b, x):
    return b(torch.distributions.Normal(a(x), 1.0).rsample()).square().mean()


# ---- a cut beside a live path


@case("open")
def cut_beside_a_live_path(a, b, x):
    h = a(x)
    return (b(h) - h.detach()).square().mean()


@case("open")
def straight_through(a, b, x):
    h = a(x)
    quantised = h + (h.round() - h).detach()
    return b(quantised).square().mean()


@case("open")
def straight_through_function(a, b, x):
    return b(_Round.apply(a(x))).square().mean()


@case("open")
def detach_called_but_not_used(a, b, x):
    h = a(x)
    h.detach()
    return b(h).square().mean()


@case("open")
def recorded_before_detach_in_place(a, b, x):
    h = a(x) + 1
    total = (h + b(x)).sum()
    h.detach_()
    return total


@case("open")
def item_logged_beside(a, b, x):
    h = a(x)
    h.mean().item()
    return b(h).square().mean()


@case("open")
def frozen_layer_in_the_middle(a, b, x):
    b.weight.requires_grad_(False)
    return b(a(x)).square().mean()


@case("open")
def gradient_penalty(a, b, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(a(x).square().sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean() + b(x).mean()


@case("open")
def saved_under_no_grad_only_for_a_mask(a, b, x):
    h = a(x)
    with torch.no_grad():
        mask = (h > 0).float()
    return (b(h) * mask).square().mean()


# ---- in place, and aliases


@case("open")
def written_into_a_buffer(a, b, x):
    buffer = torch.zeros(5, 4)
    buffer[:] = a(x)
    return b(buffer).square().mean()


@case("blocked", "detach")
def detached_and_written_into_a_buffer(a, b, x):
    buffer = torch.zeros(5, 4)
    buffer[:] = a(x).detach()  # cut
    return b(buffer).square().mean()


@case("blocked", "detach")
def written_through_a_view(a, b, x):
    buffer = torch.zeros(5, 4)
    buffer[1:3].copy_(a(x).detach()[1:3])  # cut
    return b(buffer).square().mean()


@case("blocked", "no_grad")
def copied_under_no_grad(a, b, x):
    buffer = torch.zeros(5, 4)
    with torch.no_grad():
        buffer.copy_(a(x))  # cut
    return b(buffer).square().mean()


@case("blocked", "detach")
def out_argument(a, b, x):
    buffer = torch.empty(5, 4)
    torch.add(a(x).detach(), 1.0, out=buffer)  # cut
    return b(buffer).square().mean()


@case("blocked", "detach")
def accumulated_in_place(a, b, x):
    total = torch.zeros(5, 4)
    for _ in range(2):
        total += a(x).detach()  # cut
    return b(total).square().mean()


@case("independent")
def overwritten_with_zeros(a, b, x):
    h = a(x).detach()
    h.zero_()
    return b(h).square().mean()


@case("open")
def relu_in_place(a, b, x):
    return b(F.relu(a(x), inplace=True)).square().mean()


# ---- containers


@case("blocked", "detach")
def tuple_and_dict(a, b, x):
    state = {"h": (a(x), [x])}
    state = {"h": tuple(t.detach() if isinstance(t, Tensor) else t for t in state["h"])}  # cut
    return b(state["h"][0]).square().mean()


@case("blocked", "detach")
def stacked_list(a, b, x):
    parts = [row.detach() for row in a(x).unbind()]  # cut
    return b(torch.stack(parts)).square().mean()


@case("zero")
def half_of_a_split_unused(a, b, x):
    _, used = torch.cat([a(x), b(x)]).split(5)
    return used.square().mean()


@case("blocked", "detach")
def recurrent_state_between_chunks(a, b, x):
    hidden, total = torch.zeros(5, 4), torch.zeros(())
    for chunk in range(2):
        if chunk == 0:
            hidden = a(x + hidden).tanh()
            hidden = hidden.detach()  # cut
        total = total + b(x + hidden).square().mean()
    return total


@case("open")
def recurrent_state_uncut(a, b, x):
    hidden = torch.zeros(5, 4)
    for _ in range(3):
        hidden = a(x + hidden).tanh()
    return b(hidden).square().mean()


# ---- zero


@case("zero")
def multiplied_by_zero(a, b, x):
    return 0 * a(x).sum() + b(x).sum()


@case("zero")
def dead_relu(a, b, x):
    return b((a(x) - 1e3).relu()).square().mean()


@case("zero")
def saturated_clamp(a, b, x):
    return b((a(x) + 1e3).clamp(-1, 1)).square().mean()


@case("zero")
def rounded(a, b, x):
    return b(a(x).round()).square().mean()


@case("zero")
def masked_out(a, b, x):
    return b(torch.where(x > 1e9, a(x), x)).square().mean()


@case("zero")
def bias_before_batch_norm(a, b, x):
    h = F.batch_norm(F.linear(x, b.weight) + a.bias, None, None, training=True)
    return (b(h) * x).square().mean()


# ---- independent


@case("independent")
def not_used(a, b, x):
    a(x)
    return b(x).square().mean()


@case("independent")
def only_its_shape(a, b, x):
    h = a(x)
    return (b(x) * torch.ones_like(h) + h.new_zeros(4)).square().mean() / h.numel()


@case("independent", "item")
def through_item(a, b, x):
    weight = a(x).mean().item()  # cut
    return weight * b(x).square().mean()


@case("independent", "item")
def through_float(a, b, x):
    mean = a(x).mean().detach()
    weight = float(mean)  # cut
    return (weight + 1) * b(x).square().mean()


@case("independent", "tolist")
def through_tolist(a, b, x):
    weights = a(x).mean(dim=1).tolist()  # cut
    return (torch.tensor(weights)[:, None] * b(x)).mean()


@case("independent", "numpy")
def through_numpy(a, b, x):
    h = a(x).detach()
    array = h.numpy() * 2  # cut
    return b(torch.from_numpy(array)).square().mean()


# ---- custom Functions


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class _ReturnsNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return x * 2 + y

    @staticmethod
    def backward(ctx, grad_x, *_):
        return None, grad_x


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class _NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x * 3
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return None


@case("blocked", "function")
def function_that_returns_none(a, b, x):
    h = _ReturnsNone.apply(a(x), b(x))  # cut
    return h.square().mean()


@case("open")
def gradient_reversal(a, b, x):
    return b(_Identity.apply(a(x))).square().mean()


@case("blocked", "no_grad")
def function_marked_non_differentiable(a, b, x):
    h = _NotDifferentiable.apply(a(x))  # cut
    return b(h).square().mean()


# ---- checkpoints, AMP, compile, functorch


@case("open")
def checkpoint_non_reentrant(a, b, x):
    return b(checkpoint(lambda t: a(t).relu(), x, use_reentrant=False)).square().mean()


@case("blocked", "detach")
def checkpoint_non_reentrant_with_a_cut(a, b, x):
    return b(checkpoint(lambda t: a(t).detach(), x, use_reentrant=False)).square().mean()  # cut


@case("open")
def checkpoint_reentrant(a, b, x):
    return b(checkpoint(lambda t: a(t).relu(), x.clone().requires_grad_(), use_reentrant=True)).square().mean()


@case("blocked", "no_grad")
def checkpoint_reentrant_without_a_live_input(a, b, x):
    with __import__("warnings").catch_warnings(action="ignore"):
        h = checkpoint(a, x, use_reentrant=True)  # cut
    return b(h).square().mean()


@case("open")
def autocast(a, b, x):
    with torch.autocast("cpu", torch.bfloat16):
        return b(a(x)).float().square().mean()


@case("blocked", "detach")
def autocast_with_a_cut(a, b, x):
    with torch.autocast("cpu", torch.bfloat16):
        h = a(x).detach()  # cut
        return b(h).float().square().mean()


@case("open")
def functional_call(a, b, x):
    return torch.func.functional_call(b, dict(b.named_parameters()), (a(x),)).square().mean()


@case("open")
def vmapped(a, b, x):
    return b(torch.vmap(lambda row: a(row).relu())(x)).square().mean()


@case("open")
def spectral_norm(a, b, x):
    return b(F.linear(x, a.weight / torch.linalg.matrix_norm(a.weight, 2), a.bias)).square().mean()


# ---- tied weights


@case("open")
def tied_weights(a, b, x):
    return F.linear(b(x), a.weight).square().mean() + 0 * a.bias.sum()


@case("blocked", "detach")
def tied_but_cut_at_both_uses(a, b, x):
    w = a.weight.detach()  # cut
    return (F.linear(x, w) + F.linear(b(x), w)).square().mean()


# ---- boundaries


@case("blocked", "detach")
def boundary_detach(a, b, x):
    h = Boundary("h", "detach")(a, x)  # cut
    return b(h).square().mean()


@case("blocked", "detach_")
def boundary_detach_in_place(a, b, x):
    h = Boundary("h", "detach_").cross(a(x))  # cut
    return b(h).square().mean()


@case("blocked", "data")
def boundary_data(a, b, x):
    h = Boundary("h", "data").cross({"h": a(x)})  # cut
    return b(h["h"]).square().mean()


@case("blocked", "no_grad")
def boundary_no_grad(a, b, x):
    h = Boundary("h", "no_grad")(lambda t: a(t).relu(), x)  # cut
    return b(h).square().mean()


@case("blocked", "inference_mode")
def boundary_inference_mode(a, b, x):
    h = Boundary("h", "inference_mode")(a, x)  # cut
    return (b(x) - h).square().mean()


@case("blocked", "requires_grad")
def boundary_freeze(a, b, x):
    h = Boundary("h", "freeze")(a, x)  # cut
    return b(h).square().mean()


@case("blocked", "requires_grad")
def boundary_freeze_of_a_view_of_a_parameter(a, b, x):
    h = Boundary("h", "freeze").over(a)(lambda: a.weight.expand(2, 4, 4))  # cut
    return b(h).square().mean() + 0 * b(x).sum()


@case("open")
def boundary_none(a, b, x):
    return b(Boundary("h", "none")(a, x)).square().mean()


@case("open")
def boundary_scale(a, b, x):
    return b(Boundary("h", "scale:0.5")(a, x)).square().mean()


@case("zero")
def boundary_scale_zero(a, b, x):
    return b(Boundary("h", "scale:0").cross(a(x))).square().mean()


@case("open")
def boundary_reverse(a, b, x):
    return b(Boundary("h", "reverse:1").cross([a(x)])[0]).square().mean()
