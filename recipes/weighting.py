r"""Losses weighed by functions of themselves: the weight is a number, or the problem is another one.

    theta ──> L1, L2, ... ──┬───────────────────> * ──> + ──> weighted_loss
                            └──> w(L) ──> ‖ ──────┘           ‖ stop.weight: it weighs, and is not made small

Three schemes, and what the weight does to the gradient:

    normalised   w = 1 / L           cut: grad log L, whatever the scale; live: the loss is 1, and its gradient 0
    focal        w = (1 - p)^gamma   cut: the logit comes to rest at logit(eta) / (gamma + 1); live: elsewhere
    causal       w = exp(-eps L1)    of a later L2; cut: L1's own gradient; live: (1 - eps w L2) times it, the wrong way

The adaptive weights of VQGAN and MeanFlow are normalised losses; the focal loss (Lin et al. 2017, arXiv:1708.02002) is
meant live; causal weights are those of physics-informed networks (Wang et al. 2022, arXiv:2203.07404). Where L2 cannot
be lowered below l, the live causal weight brings L1 to log(eps l) / eps: it lies to itself about the past.

    python train.py recipe=weighting                             # right: two tasks, 1 : 1000, and both count
    python train.py recipe=weighting stop.weight=none            # broken: nothing moves
    python train.py recipe=weighting_causal stop.weight=none     # broken: -.18 in the place of 1

Figures of all arms: docs/recipes/weighting.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import lightning as L
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Esser 2021; Lin 2017; Wang 2022"
# The first choice is the default; the focal loss is meant live.
BOUNDARIES = {"weight": ["detach", "data", "none", "scale"]}
SWITCHES = {}
METRICS = {
    "theta": {"goal": None, "margin": 1e-3, "broken_below": -0.1},  # 0, .4621 and 1 are right
    "factor": {"goal": None, "margin": 1e-3, "broken_below": 0.01},  # at the start, of the first loss's own gradient
}
WITHOUT = {"weight": "the loss lowers its weights: no gradient, another solution, or the wrong way"}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract({"weighted_loss": {"theta": "open", "stop.weight": "blocked"}})


class Theta(nn.Module):
    """The parameters (n,), in float64."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.values


class Weighting(L.LightningModule):
    """A parameter or two under losses that weigh one another.

    Args:
        stop: the chosen strategy.
        optimizer: from parameters to an optimiser.
        scheme: ``normalised``: (theta - 1)^2 + 4 and scale ((theta + 1)^2 + 4), each over itself, or ``raw``, as they
            are; ``focal``: a logit of labels of which eta are 1; ``causal``: (theta1 - 1)^2, then (theta2 - 1)^2 + 4.
        scale: of the second task.
        eta, gamma: of the focal loss; gamma 0 is the cross-entropy.
        eps: of the causal weight.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        scheme: Literal["normalised", "raw", "focal", "causal"] = "normalised",
        scale: PositiveFloat = 1000.0,
        eta: Annotated[float, Field(gt=0, lt=1)] = 0.8,
        gamma: NonNegativeFloat = 2.0,
        eps: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.theta = Theta(*{"focal": (0.0,), "causal": (0.5, 0.5)}.get(scheme, (0.3,)))
        self.scheme, self.scale, self.eta, self.gamma, self.eps = scheme, scale, eta, gamma, eps
        self.optimizer = optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"theta": self.theta}

    # ---- the loss: what this recipe is about

    def losses(self, theta: Tensor) -> Tensor:
        """(n,), each with its own share of the data."""
        if self.scheme == "focal":
            return torch.cat([-self.eta * theta.sigmoid().log(), -(1 - self.eta) * (-theta).sigmoid().log()])
        if self.scheme == "causal":
            return (theta - 1).square() + torch.tensor([0.0, 4.0]).to(theta)
        return torch.cat([(theta - 1).square() + 4, self.scale * ((theta + 1).square() + 4)])

    def weights(self, theta: Tensor, losses: Tensor) -> Tensor:
        """(n,)"""
        match self.scheme:
            case "focal":
                return torch.cat([(-theta).sigmoid(), theta.sigmoid()]) ** self.gamma
            case "causal":
                return torch.stack([torch.ones_like(losses[0]), (-self.eps * losses[0]).exp()])
            case "normalised":
                return 1 / losses
        return torch.ones_like(losses)

    def weighed(self, theta: Tensor) -> Tensor:
        losses = self.losses(theta)
        weights = self.stop.weight.cross(self.weights(theta, losses))  # the cut: it weighs, and is not made small
        return (weights * losses).sum()

    def weighted_loss(self, batch: Tensor) -> Tensor:
        return self.weighed(self.theta())

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weighted_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/weighted", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- where it is, and which way it began

    def factor(self) -> Tensor:
        """Of the first parameter's gradient, at the start: over that of the cut weights."""
        with torch.inference_mode(False), torch.enable_grad():
            start = {"focal": [0.0], "causal": [0.5, 0.5]}.get(self.scheme, [0.3])
            theta = torch.tensor(start, dtype=torch.float64, device=self.device, requires_grad=True)
            losses = self.losses(theta)
            cut = (self.weights(theta, losses).detach() * losses).sum()
            found, alone = (torch.autograd.grad(each, [theta])[0][0] for each in (self.weighed(theta), cut))
        return found / alone

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        theta = self.theta()[0]
        self.log("theta", theta, prog_bar=True)
        self.log("factor", self.factor())

    test_step = validation_step
