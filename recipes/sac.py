r"""SAC: one number that weighs entropy, two losses that share it, and a sample that has to be differentiated through.

    policy ──> a = mu + sigma z ──> ‖ ──> Q(a) ──────────────────────┐     ‖ stop.action: none; cut, a is only a sample
                └──> log pi(a) ──┬──> alpha (‖) log pi - Q ──────────┼──> actor_loss     ‖ stop.alpha: a weight here
                                 └──> ‖ ──> -alpha (log pi + H) ─────┴──> alpha_loss     ‖ stop.log_prob: a fact here

Haarnoja et al. 2018, arXiv:1812.05905, section 5: the policy maximises Q + alpha H(pi), and alpha rises while the
entropy is below its target. Two losses, each with the other's variable in it. Where both backwards run before a step,
and one of the cuts is missing, the entropy's terms meet and cancel, and what is left pushes alpha up for ever:

    log pi live     alpha log pi - alpha log pi - alpha H: the policy goes down Q alone, alpha up
    alpha live      d / d log alpha = alpha log pi - alpha (log pi + H) = -alpha H, whatever the policy is

Here the action is one number and Q = -a^2 / 2, so that the end is exact: alpha = sigma^2 = exp(2 H) / (2 pi e).

    python train.py recipe=sac                          # right: entropy .5, alpha .1592
    python train.py recipe=sac stop.log_prob=none       # broken: alpha grows without end

Figures of all arms: docs/recipes/sac.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Haarnoja 2018"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "log_prob": ["detach", "data", "none"],
    "alpha": ["detach", "data", "none"],
    "action": ["none", "detach"],
}
SWITCHES = {}
METRICS = {
    "entropy": {"goal": None, "margin": 1e-3},  # the target is .5
    "alpha": {"goal": None, "margin": 1e-3, "broken_above": 100.0},  # .1592 is right
    "action_error": {"goal": "min", "margin": 1e-3, "broken_above": 0.5},  # |mu|; 1 at the start, 0 is best
}
WITHOUT = {
    "log_prob": "the entropy's terms cancel: alpha grows without end",
    "alpha": "the actor's loss lowers it too: alpha grows without end",
    "action": "cut, Q teaches the policy nothing",
}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract(
    {
        "actor_loss": {"policy": "open", "alpha": "blocked", "stop.alpha": "blocked", "stop.action": "open"},
        "alpha_loss": {"alpha": "open", "policy": "blocked", "stop.log_prob": "blocked"},
    }
)


class Gaussian(nn.Module):
    """A policy over one number: mean and log standard deviation, at first 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """Actions (N,) of standard normal noise."""
        return self.mean + self.log_std.exp() * z

    def log_prob(self, actions: Tensor) -> Tensor:
        """(N,), in nats."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return -z.square() / 2 - self.log_std - math.log(2 * math.pi) / 2


class Temperature(nn.Module):
    """alpha, by its logarithm, at first 1."""

    def __init__(self) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


class SAC(L.LightningModule):
    """Actor and temperature where Q is known: -a^2 / 2. Expectations are sums over a grid of noise.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser, of both.
        target_entropy: H, in nats.
        grid: points of noise.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        target_entropy: float = 0.5,
        grid: PositiveInt = 200,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.policy, self.temperature = Gaussian(), Temperature()
        self.target_entropy, self.optimizer = target_entropy, optimizer
        self.z: Tensor
        z = torch.special.ndtri((torch.arange(grid, dtype=torch.float64) + 0.5) / grid)
        self.register_buffer("z", z / z.square().mean().sqrt())  # of variance 1, exactly

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "alpha": self.temperature}

    # ---- the two losses: what this recipe is about

    def actor_loss(self, batch: Tensor) -> Tensor:
        actions = self.stop.action.cross(self.policy(self.z))  # no cut: Q teaches through the sample
        alpha = self.stop.alpha.cross(self.temperature())  # the cut: it weighs
        return (alpha * self.policy.log_prob(actions) + actions.square() / 2).mean()

    def alpha_loss(self, batch: Tensor) -> Tensor:
        log_prob = self.policy.log_prob(self.policy(self.z))
        log_prob = self.stop.log_prob.cross(log_prob)  # the cut: the entropy is what it is
        return -(self.temperature() * (log_prob + self.target_entropy)).mean()

    # ---- both backwards, then one step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = counted(self)
        optimizer.zero_grad()
        for name in ("actor", "alpha"):
            loss = getattr(self, f"{name}_loss")(batch)
            backward(self, loss, f"{name}_loss")
            if log_is_due(self, steps_ahead=1):
                self.log(f"loss/{name}", loss.detach(), prog_bar=True)
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- where it is

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("entropy", self.policy.log_std[0] + math.log(2 * math.pi * math.e) / 2, prog_bar=True)
        self.log("alpha", self.temperature()[0], prog_bar=True)
        self.log("action_error", self.policy.mean[0].abs())

    test_step = validation_step
