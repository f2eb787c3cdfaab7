r"""Sinkhorn: at an optimum the gradient needs no way through what was optimised, unless another value is asked for.

    x, y ──> cost C ──┬──> iterations ──> plan P ──‖──┐                          ‖ stop.plan: the envelope theorem
                      └──────────────────────────────┴──> transport_loss = <P, C> + eps KL(P, a b)

Entropic optimal transport (Cuturi 2013, arXiv:1306.0895). The plan minimises the loss, so that the loss does not change
with it to the first order: with P for a constant the gradient is P dC/dx, exact, and none of the iterations is kept for
backward (POT has it as grad="envelope"). The sharp value <P, C> alone (stop.value=sharp) is not what P minimises: there
the cut leaves something out.

    python train.py recipe=sinkhorn                                            # exact, and cheap
    python train.py recipe=sinkhorn stop.plan=none                             # unrolled: the same
    python train.py recipe=sinkhorn stop.value=sharp                           # off by a tenth and more
    python train.py recipe=sinkhorn stop.value=sharp stop.plan=none            # exact again

Figures of all arms, three seeds each: docs/recipes/sinkhorn.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.plots import scatter
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "Cuturi 2013"
# The first choice is the usual one, and the default.
BOUNDARIES = {"plan": ["detach", "no_grad", "data", "none", "scale"]}
SWITCHES = {"value": ["entropic", "sharp"]}  # sharp: <P, C> without the entropy that P was made for
METRICS = {
    "gradient_error": {"goal": "min", "margin": 0.01, "broken_above": 0.05},  # relative, at the start
    "transport_cost": {"goal": "min", "margin": 0.02},  # <P, C>
}
WITHOUT = {
    "plan": "unrolled, every iteration is kept for backward, for the same gradient",
    "value": "sharp, the cut leaves out how the plan moves",
}
SMALL = ["recipe.iterations=20", "recipe.points=6"]
FLOW = FlowContract({"transport_loss": {"points": "open", "stop.plan": "blocked"}})


class Points(nn.Module):
    """(N, 2) that move; float64."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(count, 2, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.places * 1


class Sinkhorn(L.LightningModule):
    """Points that move to others, down the cost of transport, by Sinkhorn's iterations in the log domain.

    Args:
        stop: the chosen strategies and switches.
        optimizer: from parameters to an optimiser.
        points: N, of each, in the plane.
        reg: eps, the weight of the entropy.
        iterations: of Sinkhorn.
    """

    FLOW = FLOW
    targets: Tensor  # (N, 2)
    first_error: Tensor

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        points: PositiveInt = 12,
        reg: PositiveFloat = 0.1,
        iterations: PositiveInt = 500,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.moving = Points(points)
        self.register_buffer("targets", torch.randn(points, 2, dtype=torch.float64))
        self.register_buffer("first_error", torch.zeros((), dtype=torch.float64))
        self.reg, self.iterations, self.optimizer = reg, iterations, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"points": self.moving}

    # ---- the loss: what this recipe is about

    def cost(self) -> Tensor:
        """C (N, N), half the squared distances."""
        return (self.moving()[:, None] - self.targets).square().sum(2) / 2

    def log_plan(self, cost: Tensor) -> Tensor:
        """log P (N, N) of even masses, after so many iterations."""
        count = math.log(len(cost))
        f = g = torch.zeros_like(cost[0])
        for _ in range(self.iterations):
            f = -self.reg * ((g - cost) / self.reg - count).logsumexp(1)
            g = -self.reg * ((f[:, None] - cost) / self.reg - count).logsumexp(0)
        return (f[:, None] + g - cost) / self.reg - 2 * count

    def value(self, cost: Tensor, log_plan: Tensor) -> Tensor:
        """<P, C>, and with the entropy eps KL(P, a b)."""
        plan = log_plan.exp()
        sharp = (plan * cost).sum()
        if self.stop.value == "sharp":
            return sharp
        return sharp + self.reg * (plan * (log_plan + 2 * math.log(len(cost)))).sum()

    def transport_loss(self, batch: Tensor) -> Tensor:
        """The cost of bringing all points to the others."""
        cost = self.cost()
        log_plan = self.stop.plan(self.log_plan, cost)  # the cut: at its optimum the plan is a constant
        return self.value(cost, log_plan)

    # ---- the step

    def on_train_start(self) -> None:
        if self.global_step == 0:
            self.first_error.copy_(self.gradient_error())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.transport_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/transport", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def gradient_error(self) -> Tensor:
        """Of the loss's gradient and that through all iterations: |difference| / |the latter|."""
        cost = self.cost()
        unrolled = self.value(cost, self.log_plan(cost))
        found, exact = (
            torch.autograd.grad(loss, [self.moving.places])[0] for loss in (self.transport_loss(cost), unrolled)
        )
        return (found - exact).norm() / exact.norm()

    # ---- how far there is to go

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        cost = self.cost().detach()
        self.log("gradient_error", self.first_error, prog_bar=True)
        self.log("transport_cost", (self.log_plan(cost).exp() * cost).sum(), prog_bar=True)
        add_grid(self.logger, "points", self.sample(1), self.global_step)

    test_step = validation_step

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """One picture (1, 3, H, W): the points, and where they go, each from -4 to 4."""
        places = torch.cat([self.moving.places, self.targets]).cpu()
        labels = torch.arange(len(places)) // len(self.targets)
        return scatter(places / 4, labels)
