r"""Dirac-GAN: one parameter a player, so that what each cut does to the training is known exactly.

    theta ──> x = theta ──‖──> D(x) = psi x ──> d_loss      ‖ stop.fakes: psi learns, theta does not
    theta ──> x = theta ─────> D(x) = psi x ──> g_loss      ‖ stop.discriminator: theta learns, psi does not
                                  ‖ (psi)

Mescheder et al. 2018, arXiv:1801.04406, definition 2.1, with f(t) = t: the data is the point 0, the generator the point
theta, and the two players go down theta psi and -theta psi. From (1, 1), n steps of h lead to

    simultaneous updates    radius |(theta, psi)| = sqrt(2) (1 + h^2)^(n/2): every step turns it and stretches it
    alternating updates     a bounded orbit of radius about sqrt(2)
    with R1 (eq. 9)         (0, 0), the equilibrium

Without the cut at the fakes D's loss leaves psi in theta's gradient. Zeroed in time that changes nothing. Left there,
it cancels G's own, -psi, up to the step that psi has made: theta_n = (1 - h^2)^n, psi_n = 1 - (1 - theta_n) / h.
A penalty whose gradient is cut is a constant: the training is that without a penalty, bit for bit.

    python train.py recipe=dirac_gan                                         # right: it circles, radius 1.41
    python train.py recipe=dirac_gan stop.fakes=none stop.zero_grad=late     # broken: theta .007, psi -8.93

Figures of all arms: docs/recipes/dirac_gan.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import lightning as L
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due, raw

PAPER = "Mescheder 2018"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "fakes": ["detach", "no_grad", "freeze", "detach_", "data", "inference_mode", "none", "scale", "reverse"],
    "discriminator": ["freeze", "none"],
}
SWITCHES = {
    "zero_grad": ["timely", "late"],  # late: what D's loss left in theta is still there when G steps
    "penalty": ["kept", "detached"],  # the gradient of D inside R1
}
METRICS = {"radius": {"goal": "min", "margin": 0.1, "broken_above": 3.0}}  # it begins at, and circles on, 1.41
WITHOUT = {
    "fakes": "theta gets D's gradient, where it is not zeroed in time",
    "discriminator": "gradients of D that nobody uses",
    "zero_grad": "late, D's gradient cancels G's own",
    "penalty": "cut, R1 is a constant and the orbit does not come home",
}
REFUSES = {"stop.fakes=inference_mode": "Inference tensors cannot be saved for backward"}
FLOW = FlowContract(
    {
        "d_loss": {"discriminator": "open", "generator": "blocked", "stop.fakes": "blocked"},
        "g_loss": {"generator": "open", "discriminator": "blocked", "stop.discriminator": "blocked"},
    }
)


class Point(nn.Module):
    """The generator: a point mass at ``theta``."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, n: int) -> Tensor:
        """(n, 1)"""
        return self.theta + self.theta.new_zeros(n, 1)


class DiracGAN(L.LightningModule):
    """Two players of one parameter each, both begun at 1, in manual optimisation; a batch is one step of both.

    Args:
        stop: the chosen strategies and switches.
        r1: gamma, the weight of the penalty on D's gradient at the data.
        updates: ``simultaneous``: both players step from the same point.
        g_optimizer, d_optimizer: from parameters to an optimiser; plain SGD is the paper's.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        g_optimizer: Callable[..., torch.optim.Optimizer],
        d_optimizer: Callable[..., torch.optim.Optimizer],
        r1: NonNegativeFloat = 0.0,
        updates: Literal["alternating", "simultaneous"] = "alternating",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if updates == "simultaneous" and self.stop.discriminator.spelled == "none":
            raise ValueError(
                "stop.discriminator=none: with recipe.updates=simultaneous D would step on G's loss; "
                "choose stop.discriminator=freeze or recipe.updates=alternating"
            )
        self.generator, self.discriminator = Point(), nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.discriminator.weight)
        self.r1, self.updates = r1, updates
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    # ---- the two losses: what this recipe is about

    def d_loss(self, reals: Tensor) -> Tensor:
        """E D(fakes) - E D(reals) + gamma / 2 E |grad D(reals)|^2, for reals (B, 1) and as many fakes."""
        fakes = self.stop.fakes(self.generator, len(reals))  # the cut: this loss must not teach G
        loss = self.discriminator(fakes).mean() - self.discriminator(reals).mean()
        return loss + self.r1 / 2 * self.squared_slope(reals) if self.r1 else loss

    def squared_slope(self, points: Tensor) -> Tensor:
        """E |grad D|^2 at points (B, 1)."""
        points = points.detach().requires_grad_()  # a leaf: D's gradient is taken here
        (gradient,) = torch.autograd.grad(self.discriminator(points).sum(), points, create_graph=True)
        if self.stop.penalty == "detached":
            gradient = gradient.detach()  # never right: the penalty becomes a constant
        return gradient.square().sum(1).mean()

    def g_loss(self, reals: Tensor) -> Tensor:
        """-E D(fakes)"""
        fakes = self.generator(len(reals))
        return -self.stop.discriminator(self.discriminator, fakes).mean()  # through D to G; D itself must not learn

    # ---- the order of backward, zero_grad and step

    def training_step(self, reals: Tensor, batch_idx: int) -> None:
        g_optimizer, d_optimizer = counted(self, 0), raw(self, 1)
        d_optimizer.zero_grad()
        d_loss = self.d_loss(reals)
        backward(self, d_loss, "d_loss")
        if self.updates == "alternating":
            d_optimizer.step()

        if self.stop.zero_grad == "timely":
            g_optimizer.zero_grad()
        g_loss = self.g_loss(reals)
        backward(self, g_loss, "g_loss")
        if self.updates == "simultaneous":
            d_optimizer.step()
        g_optimizer.step()
        if self.stop.zero_grad == "late":
            g_optimizer.zero_grad()
        if log_is_due(self):
            self.log_dict({"loss/d": d_loss.detach(), "loss/g": g_loss.detach()}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.g_optimizer(self.generator.parameters()), self.d_optimizer(self.discriminator.parameters())]

    # ---- how far the orbit is from the equilibrium

    @torch.no_grad()
    def radius(self) -> Tensor:
        return torch.cat([self.generator.theta, self.discriminator.weight.flatten()]).norm()

    def validation_step(self, reals: Tensor, batch_idx: int) -> None:
        self.log("radius", self.radius(), prog_bar=True)

    test_step = validation_step
