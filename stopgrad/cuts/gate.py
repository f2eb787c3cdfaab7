"""A gate on the gradient: forward returns its input bit for bit, backward multiplies by a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stopgrad.cuts.torch_internals import functorch_level


class _ScaleGradientInGraphs(torch.autograd.Function):
    """The gate where torch.compile makes a graph: it takes no Function with a ``jvp``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _ScaleGradient(_ScaleGradientInGraphs):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * ctx.factor


class _ScaleGradientInTransforms(_ScaleGradient):
    """The same inside ``torch.func``, which wants a context set up apart; that takes PyTorch five times as long."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, bit for bit; its gradient is multiplied by ``factor`` (0 gives zeros, not None).

    ``factor=-l`` is the gradient reversal layer of Ganin & Lempitsky (2015, arXiv:1409.7495, eq. 16-17). It is a
    Function because ``a * x + (1 - a) * x.detach()`` rounds, so that its forward is not bit-exact.
    """
    if torch.compiler.is_compiling():
        return _ScaleGradientInGraphs.apply(x, factor)  # pyright: ignore[reportReturnType]
    function = _ScaleGradient if functorch_level() is None else _ScaleGradientInTransforms
    return function.apply(x, factor)  # pyright: ignore[reportReturnType]
