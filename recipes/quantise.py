r"""Quantise: a step has no slope, so a smooth stand-in lends it one, and the difference of the two is a constant.

    w, s ──> soft(w / s) ──────────────────────────────────> + ──> code ──> s ──‖──> s code ──> quantise_loss
                  └──> hard(w / s) - soft(w / s) ──> ‖ ──────┘                 ‖ stop.scale
                                                     ‖ stop.residual

Any straight-through estimator is soft + sg(hard - soft). In rounding, soft is the identity (quantisation-aware
training; Bengio et al. 2013, arXiv:1308.3432); in a threshold, H(z - theta), it is a ramp of width eps whose slope is a
rectangle kernel (JumpReLU; Rajamanoharan et al. 2024, arXiv:2407.14435). With the difference alive the slopes cancel:
gradient 0.

    task: weights      w is learnt, to what a grid of steps s can say: exactly
    task: step         s is learnt for given weights (LSQ; Esser et al. 2020, arXiv:1902.08153). LSQ's own estimator
                       leaves s 3 to 5 % off what is best for this loss; with the codes cut (stop.codes) it is exact
    task: threshold    theta is learnt, E (z - z H)^2 + lam E H for z ~ N(0, 1): to sqrt(lam) (derived here)

    python train.py recipe=quantise                                # right: loss 0
    python train.py recipe=quantise stop.residual=none             # broken: gradient 0, the loss stays
    python train.py recipe=quantise_step                           # LSQ
    python train.py recipe=quantise_step stop.codes=detach         # exact
    python train.py recipe=quantise_threshold                      # .71; sqrt(.49) = .7

Figures of all arms, three seeds each: docs/recipes/quantise.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Bengio 2013; Esser 2020; Rajamanoharan 2024"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "residual": ["detach", "data", "none", "scale", "reverse"],
    "codes": ["none", "detach"],
    "scale": ["none", "detach"],
}
SWITCHES = {}
METRICS = {
    "quantise_loss": {"goal": "min", "margin": 0.001},
    "parameter_error": {"goal": "min", "margin": 0.005, "broken_above": 0.5},  # of what is learnt, relative
}
WITHOUT = {
    "residual": "the slopes of step and stand-in cancel: gradient 0, nothing is learnt",
    "codes": "cut, the step is the best one for the reconstruction, which LSQ's estimator misses by 3 to 5 %",
    "scale": "cut, the step hears of itself as a divisor alone: twice as long",
}
NEEDS = {
    "stop.codes": ["recipe.task=step"],
    "stop.scale": ["recipe.task=step"],
}
EXEMPT = {"picture": "figures of one number each, which the tables hold"}
SMALL = ["recipe.points=64", "recipe.optimizer.lr=0.2"]  # by which weights are not there within 30 steps
FLOW = FlowContract({"quantise_loss": {"learnt": "open", "stop.residual": "blocked"}})
STEP = FlowContract(
    {"quantise_loss": {"learnt": "open", "stop.residual": "blocked", "stop.codes": "open", "stop.scale": "open"}}
)


class Learnt(nn.Module):
    """The parameter: weights (N,), a step (1,) or a threshold (1,); float64."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(start.double())

    def forward(self) -> Tensor:
        return self.value * 1


class Quantise(L.LightningModule):
    """What a step function is made of, learned through a smooth stand-in for its slope.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        task: ``weights``, ``step`` or ``threshold``.
        points: weights, drawn by the seed; or pre-activations, quantiles of a standard normal.
        step_size: s, to begin with where it is learnt.
        low, high: the least and the greatest code.
        width: eps, of the kernel.
        sparsity: lam, the weight of the number of active features.
    """

    points: Tensor  # (N,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        task: Literal["weights", "step", "threshold"] = "weights",
        points: PositiveInt = 256,
        step_size: PositiveFloat = 0.5,
        low: int = -2,
        high: int = 1,
        width: PositiveFloat = 0.05,
        sparsity: NonNegativeFloat = 0.49,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if low >= high:
            raise ValueError(f"recipe.low={low}: must lie below recipe.high={high}")
        self.task, self.size, self.low, self.high, self.width, self.lam = task, step_size, low, high, width, sparsity
        drawn = torch.randn(points, dtype=torch.float64)
        if task == "weights":  # to be found: codes times s
            codes = torch.randint(low, high + 1, (points,)).double()
            self.learnt, made = Learnt(0.1 * drawn), step_size * codes
        elif task == "step":
            self.learnt, made = Learnt(torch.tensor([step_size])), drawn
        else:
            shares = (torch.arange(points, dtype=torch.float64) + 0.5) / points
            self.learnt, made = Learnt(torch.tensor([0.1])), torch.special.ndtri(shares)
        self.register_buffer("points", made)
        self.FLOW = STEP if task == "step" else FLOW
        self.optimizer = optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"learnt": self.learnt}

    # ---- the loss: what this recipe is about

    def through(self, hard: Tensor, soft: Tensor) -> Tensor:
        """The value of hard, the slope of soft."""
        return soft + self.stop.residual.cross(hard - soft)  # the cut: what is added is a constant

    def quantised(self, weights: Tensor, step: Tensor) -> Tensor:
        """s times the code of each of weights (N,)."""
        inside = (weights / step).clamp(self.low, self.high)
        codes = self.stop.codes.cross(self.through(inside.round(), inside))
        return self.stop.scale.cross(step) * codes

    def active(self, threshold: Tensor) -> Tensor:
        """H(z - theta) of each pre-activation (N,); the stand-in is a ramp of width eps about theta."""
        apart = self.points - threshold
        return self.through((apart > 0).to(apart), (apart / self.width + 0.5).clamp(0, 1))

    def quantise_loss(self, batch: Tensor) -> Tensor:
        """Mean squared error; of a threshold, with lam times the share that is active."""
        if self.task == "threshold":
            on = self.active(self.learnt())
            return ((self.points * (1 - on)).square() + self.lam * on).mean()
        weights = self.learnt() if self.task == "weights" else self.points
        step = self.points.new_tensor([self.size]) if self.task == "weights" else self.learnt()
        return (self.quantised(weights, step) - self.points).square().mean()

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.quantise_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/quantise", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.task == "step" and self.stop.codes.spelled == self.stop.scale.spelled == "detach":
            raise ValueError("stop.scale=detach: with stop.codes=detach nothing learns; choose stop.scale=none")
        return self.optimizer(self.parameters())

    # ---- how far what is learnt is from the best

    def best(self) -> Tensor:
        """The step of the least error, by trying ten thousand; or the threshold sqrt(lam)."""
        if self.task == "threshold":
            return self.points.new_tensor([self.lam]).sqrt()
        steps = torch.linspace(0.5, 2.5, 10_001, dtype=torch.float64, device=self.device)
        errors = [
            ((self.points / s).clamp(self.low, self.high).round().mul(s) - self.points).square().mean() for s in steps
        ]
        return steps[torch.stack(errors).argmin()][None]

    def parameter_error(self) -> Tensor:
        """Relative; of weights, the share that ends at a wrong code."""
        value = self.learnt.value.detach()
        if self.task == "weights":
            return ((value / self.size).clamp(self.low, self.high).round() * self.size != self.points).double().mean()
        if not hasattr(self, "found"):
            self.found = self.best()
        return (value / self.found - 1).abs().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("quantise_loss", self.quantise_loss(batch).detach(), prog_bar=True)
        self.log("parameter_error", self.parameter_error(), prog_bar=True)
        if self.task != "weights":
            self.log(self.task, self.learnt.value.detach().sum())

    test_step = validation_step
