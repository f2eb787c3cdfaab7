r"""Refine: an estimate is improved step by step, and each step may take the one before for a constant.

    V_0 ──> step w ──> V_1 ──‖──> step w ──> V_2 ──‖──> ... ──> V_K      ‖ stop.estimate: between two steps
                        │                     │               │
                        └─────────────────────┴───────────────┴──> refine_loss = sum V_k

RAFT (Teed & Deng 2020, arXiv:2003.12039) detaches its flow before every update, iterative DETR its boxes (Zhu et al.
2021, arXiv:2010.04159); DINO-DETR's "look forward twice" (Zhang et al. 2022, arXiv:2203.03605) takes one cut away. The
toy is a Kalman filter: an estimate of error variance V meets a measurement of variance 1 with weight w,

    V' = (1 - w)^2 V + w^2,    V_0 = 1,

whose best weights are w_k = V / (V + 1), that is 1/2, 1/3, 1/4, 1/5. If every step has a weight of its own, what is
best for its own loss is best for all that follow: the cut is free (derived here). If all share one weight, it is not:
the cut leaves out what a step does for the later ones.

    python train.py recipe=refine                            # one weight, cut: w = .3515
    python train.py recipe=refine stop.estimate=none         # .3661, of a lower loss
    python train.py recipe=refine recipe.tied=false          # 1/2, 1/3, 1/4, 1/5, cut or not

Figures of all arms, three seeds each: docs/recipes/refine.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Teed & Deng 2020; Zhu 2021"
# The first choice is the papers', and the default.
BOUNDARIES = {"estimate": ["detach", "data", "none", "scale", "reverse"]}
SWITCHES = {}
METRICS = {
    "summed_variance": {"goal": "min", "margin": 0.001},  # the loss on all estimates
    "error_variance": {"goal": "min", "margin": 0.001},  # V_K; it begins at 1, and 1/(K + 1) is best
    "mean_weight": {"goal": None, "margin": 0.005},
}
WITHOUT = {"estimate": "alive, a shared step also learns what it does for later ones; steps of their own gain nothing"}
EXEMPT = {"picture": "figures of one number each, exact, which the table holds"}
FLOW = FlowContract({"refine_loss": {"step": "open", "stop.estimate": "blocked"}})


class Step(nn.Module):
    """(1 - w)^2 V + w^2 with the weight of the k-th step, float64."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(0.1 + 0.8 * torch.rand(weights, dtype=torch.float64))

    def forward(self, variance: Tensor, k: int) -> Tensor:
        weight = self.weights[k % len(self.weights)]
        return (1 - weight).square() * variance + weight.square()


class Refine(L.LightningModule):
    """K steps of one estimate, with one weight or with K.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        iterations: K.
        tied: whether all steps share a weight, as RAFT's do; DETR's layers do not.
        losses: on every estimate, or on the last alone.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        iterations: PositiveInt = 4,
        tied: bool = True,
        losses: Literal["all", "last"] = "all",
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.step = Step(1 if tied else iterations)
        self.iterations, self.losses, self.optimizer = iterations, losses, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"step": self.step}

    # ---- the loss: what this recipe is about

    def estimates(self) -> list[Tensor]:
        """V_1 to V_K."""
        variance, found = self.step.weights.new_ones(()), []
        for k in range(self.iterations):
            if k:
                variance = self.stop.estimate.cross(variance)  # the cut: a step is not told what it does for the next
            variance = self.step(variance, k)
            found.append(variance)
        return found

    def refine_loss(self, batch: Tensor) -> Tensor:
        """The error variances, added up."""
        found = self.estimates()
        return torch.stack(found if self.losses == "all" else found[-1:]).sum()

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.refine_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/refine", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how good the last estimate is

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        found = torch.stack(self.estimates()).detach()
        self.log("summed_variance", found.sum())
        self.log("error_variance", found[-1], prog_bar=True)
        self.log("mean_weight", self.step.weights.detach().mean(), prog_bar=True)
        for k, weight in enumerate(self.step.weights.detach()):
            self.log(f"weight/{k + 1}", weight)

    test_step = validation_step
