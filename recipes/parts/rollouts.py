"""Rollouts: some steps of environments that go on, and the returns that follow from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recipes.parts.environments import Step


@dataclass
class Rollout:
    """T steps of N environments, the observations normalised. ``valid`` and the estimates count (T, N) flat."""

    observations: Tensor  # (T + 1, N, ...), the last to bootstrap from
    actions: Tensor  # (T * N, ...)
    log_probs: Tensor  # (T * N,), of the policy that acted
    steps: Step  # of (T, N)
    valid: Tensor  # indices of the transitions: a step that only reset its environment is none
    estimates: dict[str, Tensor] = field(default_factory=dict)  # kept, see `once`


def lambda_returns(next_values: Tensor, steps: Step, gamma: float, gae_lambda: float) -> Tensor:
    """G_t = r_t + gamma ((1 - lambda) V(s_t+1) + lambda G_t+1), so that GAE's advantage (eq. 16) is G_t - V(s_t).

    Nothing follows a termination; what follows a truncation, or the last step, is V(s_t+1). All (T, N).
    """
    discount = gamma * ~steps.terminated
    own_share = torch.where(steps.terminated | steps.truncated, 1.0, 1 - gae_lambda)
    here = steps.reward + discount * own_share * next_values
    onward = discount * (1 - own_share)
    returns = [next_values[-1]]
    for constant, factor in zip(reversed(here.unbind()), reversed(onward.unbind()), strict=True):
        returns.append(torch.addcmul(constant, factor, returns[-1]))
    return torch.stack(returns[:0:-1])


def once(estimate: Callable[[Any, Rollout], Tensor]) -> Callable[[Any, Rollout], Tensor]:
    """A recipe's estimate (T, N), flat: once a rollout; but anew for every minibatch where it carries a graph.

    A graph cannot outlive the optimiser's step, which changes the weights that it saved. A recipe with ``recompute``
    makes it anew in any case.
    """

    @functools.wraps(estimate)
    def estimate_once(self: Any, rollout: Rollout) -> Tensor:
        kept = rollout.estimates.get(estimate.__name__)
        if kept is not None:
            return kept
        value = estimate(self, rollout).flatten()
        if not (value.requires_grad or self.recompute):
            rollout.estimates[estimate.__name__] = value
        return value

    return estimate_once
