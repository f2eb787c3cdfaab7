"""A gate on the gradient: forward returns its input bit for bit, backward multiplies by a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * ctx.factor


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, bit for bit; its gradient is multiplied by ``factor`` (0 gives zeros, not None).

    ``factor=-l`` is the gradient reversal layer of Ganin & Lempitsky (2015, arXiv:1409.7495, eq. 16-17). It is a
    Function because ``a * x + (1 - a) * x.detach()`` rounds, so that its forward is not bit-exact.
    """
    return _ScaleGradient.apply(x, factor)  # pyright: ignore[reportReturnType]
