"""Critics of an observation and an action."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class TwinCritic(nn.Module):
    """Two critics of two hidden layers as one: each weight has a leading dimension of 2, each layer is one product."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        sizes = [inputs, width, width, 1]
        self.weights = nn.ParameterList(torch.empty(2, n, m) for n, m in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(2, 1, m) for m in sizes[1:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])  # as nn.Linear begins
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., O) and (..., A) to the values of both (2, ...)."""
        x = torch.cat([observations, actions], dim=-1)
        shape = x.shape[:-1]
        x = x.flatten(0, -2).expand(2, -1, -1)
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)  # a slice would be a new ParameterList
        for inner, offset in hidden:
            x = torch.baddbmm(offset, x, inner).relu_()
        return torch.baddbmm(bias, x, weight).view(2, *shape)

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The value (...) of the first one alone, at half the cost."""
        x = torch.cat([observations, actions], dim=-1)
        *hidden, (weight, bias) = zip(self.weights, self.biases, strict=True)
        for inner, offset in hidden:
            x = linear(x, inner[0].mT, offset[0, 0]).relu_()
        return linear(x, weight[0].mT, bias[0, 0]).squeeze(-1)
