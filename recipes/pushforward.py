r"""Pushforward: a solver is trained on its own output, as if another had made it.

    x_0 ──> solver ──> a x_0 ───────────> one-step error against x_1 ──┐
                        └──‖──> solver ──> two-step error against x_2 ──┴──> rollout_loss      ‖ stop.rollout

Brandstetter, Worrall & Welling 2022, arXiv:2202.03376: a neural PDE solver meets its own errors when it is rolled out,
and is trained on states that it has made, without gradient through the making. For a linear solver a x of a process
with correlations rho_1, rho_2 at lags 1 and 2, the gradients of the three objectives vanish at (derived here)

    one step      a = rho_1
    cut           a^3 + (1 - rho_2) a - rho_1 = 0
    alive         2 a^3 + (1 - 2 rho_2) a - rho_1 = 0

The cut is the loss of no function: it asks that the second step be right for the input that it is given. Alive, the
first step also gives way to make the second one easy.

    python train.py recipe=pushforward                          # .6287 at rho = .5, .6
    python train.py recipe=pushforward stop.rollout=none        # .6828
    python train.py recipe=pushforward recipe.rollout_weight=0  # .5000

Figures of all arms, three seeds each: docs/recipes/pushforward.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Brandstetter 2022"
# The first choice is the paper's, and the default.
BOUNDARIES = {"rollout": ["detach", "data", "none", "scale", "reverse"]}
SWITCHES = {}
METRICS = {
    "two_step_error": {"goal": "min", "margin": 0.001},
    "one_step_error": {"goal": "min", "margin": 0.001},
}
WITHOUT = {"rollout": "the first step gives way to make the second one easy: better in two steps, worse in one"}
EXEMPT = {"picture": "figures of one number, exact, which the table holds"}
FLOW = FlowContract({"rollout_loss": {"solver": "open", "stop.rollout": "blocked"}})
ONE_STEP = FlowContract({"rollout_loss": {"solver": "open"}})


class Solver(nn.Module):
    """a x, float64."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x


class Pushforward(L.LightningModule):
    """A linear solver of a stationary process of variance 1, in expectation.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        rho_1, rho_2: the process's correlations at lags 1 and 2.
        rollout_weight: of the error after two steps; 0: one-step training.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        rho_1: float = 0.5,
        rho_2: float = 0.6,
        rollout_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if not max(abs(rho_1), 2 * rho_1**2 - 1) <= 1 or not 2 * rho_1**2 - 1 <= rho_2 <= 1:
            raise ValueError(f"recipe.rho_2={rho_2}: no process has it; choose from {2 * rho_1**2 - 1:g} to 1")
        self.solver = Solver()
        self.rho_1, self.rho_2, self.weight, self.optimizer = rho_1, rho_2, rollout_weight, optimizer
        self.FLOW = FLOW if rollout_weight else ONE_STEP

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"solver": self.solver}

    # ---- the loss: what this recipe is about

    def error(self, factor: Tensor, rho: float) -> Tensor:
        """E (x_n - c x_0)^2 of a factor c (1,)."""
        return (1 - 2 * factor * rho + factor.square()).sum()

    def rollout_loss(self, batch: Tensor) -> Tensor:
        """Half the errors after one step, and after another from where it led."""
        state = self.solver(self.solver.a.new_ones(1))  # a x_0, as a factor of x_0
        loss = self.error(state, self.rho_1)
        if self.weight:
            pushed = self.stop.rollout.cross(state)  # the cut: an input like any other
            loss = loss + self.weight * self.error(self.solver(pushed), self.rho_2)
        return loss / 2

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.rollout_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/rollout", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how good it is

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        a = self.solver.a.detach()
        self.log("a", a.sum(), prog_bar=True)
        self.log("one_step_error", self.error(a, self.rho_1), prog_bar=True)
        self.log("two_step_error", self.error(a.square(), self.rho_2), prog_bar=True)

    test_step = validation_step
