"""Stochastic policies for choices and for continuous actions, the networks under them, and normalised observations.

A policy's network gives its parameters; noise of a known shape makes an action of them. So all noise of a rollout is
drawn at once, from a generator that is given, and nothing is drawn or checked in the loop over time.
"""

from __future__ import annotations

import math

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, log_softmax


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Orthogonal weights times ``gain``, biases 0: the usual start of policy-gradient networks."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Observations (B, ...) of ``inputs`` numbers -> features (B, width).

    The layers are called as functions: a module's call costs as much as what a layer of 64 units computes.
    """

    def __init__(self, inputs: int, width: int) -> None:
        gain = math.sqrt(2)
        first, second = linear(inputs, width, gain), linear(width, width, gain)
        super().__init__(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh())
        self.layers = (first, second)

    def forward(self, observations: Tensor) -> Tensor:
        x = observations.flatten(1)
        for layer in self.layers:
            x = functional.linear(x, layer.weight, layer.bias).tanh()
        return x


class Categorical(nn.Module):
    """A policy over K choices: features (B, width) -> logits (B, K)."""

    def __init__(self, width: int, choices: int) -> None:
        super().__init__()
        self.logits, self.choices = linear(width, choices, 0.01), choices

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features)

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """(*shape, K) of the standard Gumbel distribution."""
        return -torch.empty(*shape, self.choices).exponential_(generator=generator).log()

    def act(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B,) int64: a sample, or without noise the likeliest choice."""
        return (logits if noise is None else logits + noise).argmax(-1)

    def log_prob(self, logits: Tensor, actions: Tensor) -> Tensor:
        """log pi(a) (B,), in nats."""
        return -cross_entropy(logits, actions, reduction="none")

    def entropy(self, logits: Tensor) -> Tensor:
        """(B,), in nats."""
        log_p = log_softmax(logits, -1)
        return -(log_p.exp() * log_p).sum(-1)


class Gaussian(nn.Module):
    """A policy over actions (B, *shape): features (B, width) -> mean (B, *shape) and log std (*shape)."""

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean = nn.Sequential(linear(width, math.prod(shape), 0.01), nn.Unflatten(1, shape))
        self.log_std = nn.Parameter(torch.zeros(shape))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(features), self.log_std

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """(*shape, *action) of the standard normal distribution."""
        return torch.randn(*shape, *self.log_std.shape, generator=generator)

    def act(self, policy: tuple[Tensor, Tensor], noise: Tensor | None = None) -> Tensor:
        """(B, *shape) float32: a sample, or without noise the mean; not clipped."""
        mean, log_std = policy
        return mean if noise is None else mean + log_std.exp() * noise

    def log_prob(self, policy: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
        """log pi(a) (B,), in nats."""
        mean, log_std = policy
        z = (actions - mean) * (-log_std).exp()
        return -z.square().flatten(1).sum(-1) / 2 - self._normaliser(log_std)

    def entropy(self, policy: tuple[Tensor, Tensor]) -> Tensor:
        """(B,), in nats."""
        mean, log_std = policy
        return (self._normaliser(log_std) + log_std.numel() / 2).expand(len(mean))

    @staticmethod
    def _normaliser(log_std: Tensor) -> Tensor:
        return log_std.sum() + log_std.numel() * math.log(2 * math.pi) / 2


def policy_for(action: Box | Discrete, width: int) -> Categorical | Gaussian:
    """The policy over an action space."""
    return Gaussian(width, action.shape) if isinstance(action, Box) else Categorical(width, int(action.n))


def clipped_gain(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) (B,), as each transition clips on one side alone.

    The values of the minimum of both products and, but at a bound itself, its gradients, in half the operations.
    """
    gains = advantage > 0
    lowest, highest = torch.where(gains, -math.inf, 1 - clip), torch.where(gains, 1 + clip, math.inf)
    return ratio.clamp(lowest, highest) * advantage


class Normalise(nn.Module):
    """Observations less their running mean, over their running standard deviation, clipped to +-10."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, observations: Tensor) -> Tensor:
        return ((observations - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-10, 10)

    @torch.no_grad()
    def update(self, observations: Tensor) -> None:
        """Merge the moments of ``observations`` (B, ...) into the running ones (Chan et al. 1979)."""
        variance, mean = torch.var_mean(observations, 0, correction=0)
        share = len(observations) / (self.count + len(observations))
        gap = mean - self.mean
        self.variance.lerp_(variance, share).add_(gap.square() * share * (1 - share))
        self.mean.add_(gap * share)
        self.count.add_(len(observations))
