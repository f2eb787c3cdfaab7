"""Networks of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """(..., sizes[0]) to (..., sizes[-1]): a linear layer from each size to the next, the activation between them."""
    layers = [layer for size in pairwise(sizes) for layer in (nn.Linear(*size), activation())]
    return nn.Sequential(*layers[:-1])
