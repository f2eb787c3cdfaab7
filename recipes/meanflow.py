r"""MeanFlow: the average velocity of a path is told by its own derivative, which must stay put.

    z = (1 - t) x + t e ──> u(z, r, t) ─────────────────────────────> ‖ ──┐     ‖ stop.prediction: to see the other side
                                 └──> du/dt ──> v - (t - r) du/dt ──> ‖ ──┴──> flow_loss     ‖ stop.target

Geng et al. 2025, arXiv:2505.13447, algorithm 1: u(z, r, t) is the mean velocity of the path through z from t to r, so
that e - u(e, 0, 1) is a sample in one step. Its derivative along the path, by forward mode, gives the target,

    u = v - (t - r) du/dt,   du/dt = v grad_z u + d_t u,   v = e - x in place of the mean velocity at z

and the target is cut. Alive, the loss also falls by a du/dt that varies less along the noisy v: E |d/dt (t - r) u|^2 of
straight paths is least for samples that are too alike. For data of standard deviation s they have (derived here)

    1 / (pi / 2 + s) of it, at a lower loss.

stop.tangent=marginal takes du/dt along u(z, t, t), the velocity at z as far as it is known (Geng et al. 2025,
arXiv:2512.02012): nothing is noisy, and nothing is gained by a collapse. recipe.objective=shortcut halves the path
instead (Frans et al. 2024, arXiv:2410.12557): the target is the mean of two steps, without noise, so that its cut does
nothing either; cutting the prediction in its stead does.

    python train.py recipe=meanflow                          # right: samples as wide as the data, .99
    python train.py recipe=meanflow stop.target=none         # broken: .48, at .9 of the loss
    python train.py recipe=meanflow_ring                     # eight Gaussians, drawn

Figures of all arms, three seeds each: docs/recipes/meanflow.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import lightning as L
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.func import jvp

from recipes.parts.averages import follow
from recipes.parts.networks import mlp
from recipes.parts.plots import scatter
from recipes.parts.points import energy_distance
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "Geng 2025; Frans 2024"
# The first choice is the paper's, and the default.
BOUNDARIES = {"target": ["detach", "data", "none", "scale", "reverse"], "prediction": ["none", "detach"]}
SWITCHES = {"tangent": ["conditional", "marginal"]}  # v = e - x; or what the network itself says of z
METRICS = {
    "std_ratio": {"goal": None, "margin": 0.05, "broken_below": 0.7},  # of samples and data; 1 is right
    "energy_distance": {"goal": "min", "margin": 0.05},
    "held_out_loss": {"goal": None, "margin": 0.02},
}
WITHOUT = {
    "target": "samples collapse to 1 / (pi/2 + s) of the data's spread, at a lower loss",
    "prediction": "cut, what is known moves to what is not: it diverges",
    "tangent": "marginal, there is no noise to gain by, and the cut does nothing",
}
NEEDS = {"stop.prediction": ["stop.target=none"]}
EXEMPT = {"ranks": "a quarter of each rank's own rows has r = t"}
SMALL = ["data.batch_size=8", "recipe.width=8"]
FLOW = FlowContract({"flow_loss": {"network": "open", "stop.prediction": "open", "stop.target": "blocked"}})


class Velocity(nn.Module):
    """(B, D) at times r and t (B,) to the mean velocity from t to r, (B, D).

    Args:
        dimensions: D.
        width: units of each hidden layer.
        kind: ``affine``: a(r, t) z + b(r, t), in which a Gaussian's lies exactly; or ``mlp``, of z too.
    """

    def __init__(self, dimensions: int, width: int, kind: str) -> None:
        super().__init__()
        self.affine = kind == "affine"
        ends = (4, 1 + dimensions) if self.affine else (4 + dimensions, dimensions)
        self.network = mlp(ends[0], *[width] * (2 if self.affine else 3), ends[1], activation=nn.SiLU)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        times = torch.stack([r, t, t - r, r * t], dim=1)
        if self.affine:
            slope, offset = self.network(times).split([1, z.shape[1]], dim=1)
            return slope * z + offset
        return self.network(torch.cat([z, times], dim=1))


class MeanFlow(L.LightningModule):
    """A mean velocity, learned from points and noise, by which one step makes a point of noise.

    Args:
        stop: the chosen strategies and switches.
        shape: (D,) of a point.
        optimizer: from parameters to an optimiser.
        width: units of each hidden layer.
        network: ``affine`` or ``mlp``, see :class:`Velocity`.
        objective: ``meanflow``; or ``shortcut``, two steps of half the length for a target.
        flow_ratio: share of the batch with r = t, plain flow matching.
        decay: of the running average of the weights, which samples.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 64,
        network: Literal["affine", "mlp"] = "affine",
        objective: Literal["meanflow", "shortcut"] = "meanflow",
        flow_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25,
        decay: Annotated[float, Field(ge=0, le=1)] = 0.99,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.velocity = Velocity(shape[0], width, network)
        self.average = copy.deepcopy(self.velocity).requires_grad_(False)
        self.shape, self.objective, self.flow_ratio, self.decay = shape, objective, flow_ratio, decay
        self.optimizer = optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.velocity}

    # ---- the loss: what this recipe is about

    def flow_loss(self, points: Tensor) -> Tensor:
        """Squared distance of prediction and target for points (B, D), with noise and times that are drawn."""
        noise, times = torch.randn_like(points), torch.rand(2, len(points), device=points.device)
        return self.distance(points, noise, times.amin(0), times.amax(0)).mean()

    def distance(self, points: Tensor, noise: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """(B,) for points and noise (B, D), r <= t (B,); the first of them get r = t."""
        r = torch.where(torch.arange(len(r), device=r.device) < self.flow_ratio * len(r), t, r)
        z, v = points + t[:, None] * (noise - points), noise - points
        prediction, target = self.meanflow(z, v, r, t) if self.objective == "meanflow" else self.shortcut(z, v, r, t)
        prediction = self.stop.prediction.cross(prediction)
        target = self.stop.target.cross(target)  # the cut: the derivative must not be made convenient
        return (prediction - target).square().sum(1)

    def meanflow(self, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """u and v - (t - r) du/dt."""
        tangent = v if self.stop.tangent == "conditional" else self.velocity(z, t, t).detach()
        u, derivative, *_ = jvp(self.velocity, (z, r, t), (tangent, torch.zeros_like(r), torch.ones_like(t)))
        return u, v - (t - r)[:, None] * derivative

    def shortcut(self, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """u, and v where r = t, else the mean of the steps from t to the middle and on to r."""
        middle = (r + t) / 2
        first = self.velocity(z, middle, t)
        second = self.velocity(z - (t - middle)[:, None] * first, r, middle)
        return self.velocity(z, r, t), torch.where((r == t)[:, None], v, (first + second) / 2)

    # ---- the step

    def training_step(self, points: Tensor, batch_idx: int) -> Tensor:
        loss = self.flow_loss(points)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/flow", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.stop.prediction.spelled == "detach" and "target" not in self.stop.flipped:
            target = self.stop.target.spelled
            raise ValueError(f"stop.prediction=detach: with stop.target={target} nothing learns; add stop.target=none")
        return self.optimizer(self.velocity.parameters())

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        follow(self.average, self.velocity, self.decay)

    # ---- what is sampled, in one step

    @torch.no_grad()
    def generated(self, n: int) -> Tensor:
        """(n, D) of noise that is the same every time."""
        noise = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        zeros = noise.new_zeros(n)
        return noise - self.average(noise, zeros, zeros + 1)

    def validation_step(self, points: Tensor, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(points.shape, generator=generator).to(points)
        times = torch.rand(2, len(points), generator=generator).to(points)
        with torch.inference_mode(False):
            clone, kept = points.clone(), self.distance(points.clone(), noise.clone(), *times.clone().sort(0).values)
        samples = self.generated(len(points))
        self.log("held_out_loss", kept.detach().mean())
        self.log("std_ratio", (samples.std(0) / clone.std(0)).mean(), prog_bar=True)
        self.log("energy_distance", energy_distance(samples, clone), prog_bar=True)
        add_grid(self.logger, "samples", self.sample(1), self.global_step)

    test_step = validation_step

    def sample(self, n: int) -> Tensor:
        """One picture (1, 3, H, W) of 1,000 samples, their first two numbers, each from -3 to 3."""
        return scatter(self.generated(1000)[:, :2] / 3)
