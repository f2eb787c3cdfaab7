r"""Variational inference: the gradient that is zero on average, and is noise where the approximation is exact.

    noise ──> z = mu + C noise ─────────> log p(y, z) ──────────────┐
              └──> ‖ ──> log q(z; mu, C) ───────────────────────> - ──> elbo_loss     ‖ stop.sample: cut only to see
    mu, C ───────> ‖ ──────────────┘                            ‖ stop.score: detach sticks the landing, none does not

The gradient of log q(z; phi) by its own phi, the score, has mean 0 for z from q, and variance, which nobody needs.
Sticking the landing (Roeder, Wu & Duvenaud 2017, arXiv:1703.09194, section 3) cuts it: what is left goes through z,

    d/dz [log q(z) - log p(y, z)] dz/dphi,

and is 0 for every z where q is the posterior: there constant steps come to rest. With the score in it the gradient is,
for a q that is shifted and scaled noise, that of the entropy in closed form (stop.entropy=closed), since log q(z) =
-|noise|^2 / 2 - log |C| + const whatever mu and C are. scale:a keeps a part of the score. Far from the posterior the
score may cancel other noise: the cut is no gain everywhere. With z cut instead, log q gives the score alone, which is 0
on average: nothing keeps q wide, and it shrinks to the posterior's mode.

Here the posterior is that of a linear regression: Gaussian, and known.

    python train.py recipe=variational                                           # right: KL 1e-16
    python train.py recipe=variational stop.score=none                           # .06, and no less: noise
    python train.py recipe=variational stop.score=none stop.sample=detach        # broken: q collapses

Figures of all arms, three seeds each: docs/recipes/variational.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.linalg import solve_triangular

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Roeder 2017"
# The first choice is the paper's, and the default.
BOUNDARIES = {"score": ["detach", "data", "none", "scale", "reverse"], "sample": ["none", "detach"]}
SWITCHES = {"entropy": ["sampled", "closed"]}  # closed: -log |C|, and no log q to cut
METRICS = {
    "kl": {"goal": "min", "margin": 0.01, "broken_above": 1.0},  # nats from q to the posterior; 168 at the start
    "gradient_variance": {"goal": "min", "margin": 1.0},  # of one draw's, all parameters together
}
WITHOUT = {
    "score": "noise where the approximation is exact: constant steps never come to rest",
    "sample": "cut, no entropy: q shrinks to a point",
    "entropy": "closed, the same as score=none: it is not what is exact that counts",
}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract({"elbo_loss": {"q": "open", "stop.sample": "open", "stop.score": "blocked"}})
CLOSED = FlowContract({"elbo_loss": {"q": "open"}})


class Gaussian(nn.Module):
    """q = N(mu, C C'), C lower triangular with a positive diagonal; at first N(0, 1).

    Args:
        dimensions: D.
        family: ``full``, or ``diagonal``: C is.
    """

    def __init__(self, dimensions: int, family: str) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
        self.log_diagonal = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
        self.below = (
            nn.Parameter(torch.zeros(dimensions, dimensions, dtype=torch.float64)) if family == "full" else None
        )

    def factor(self) -> Tensor:
        """C (D, D)"""
        diagonal = torch.diag(self.log_diagonal.exp())
        return diagonal if self.below is None else diagonal + self.below.tril(-1)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, D) of noise (B, D), mu (D,) and C (D, D)."""
        factor = self.factor()
        return self.mean + noise @ factor.T, self.mean, factor


def log_density(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """(B,) log N(z; mean, C C') of z (B, D)."""
    noise = solve_triangular(factor, (z - mean).T, upper=False)
    return -(noise.square().sum(0) + len(mean) * math.log(2 * math.pi)) / 2 - factor.diagonal().log().sum()


class Variational(L.LightningModule):
    """A Gaussian that comes to the posterior of a linear regression: y ~ N(X z, variance), z ~ N(0, 1).

    Args:
        stop: the chosen strategies and switches.
        optimizer: from parameters to an optimiser.
        patients, features: rows and columns of scikit-learn's diabetes data, the first ones; standardised.
        variance: of y.
        family: of q.
    """

    x: Tensor  # (patients, features)
    y: Tensor  # (patients,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        patients: PositiveInt = 40,
        features: PositiveInt = 4,
        variance: PositiveFloat = 0.5,
        family: Literal["full", "diagonal"] = "full",
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.FLOW = CLOSED if self.stop.entropy == "closed" else FLOW
        self.q = Gaussian(features, family)
        self.variance, self.optimizer = variance, optimizer
        x, y = (torch.from_numpy(part) for part in load_diabetes(return_X_y=True))
        self.register_buffer("x", ((x - x.mean(0)) / x.std(0))[:patients, :features])
        self.register_buffer("y", ((y - y.mean()) / y.std())[:patients])

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"q": self.q}

    # ---- the loss: what this recipe is about

    def log_joint(self, z: Tensor) -> Tensor:
        """(B,) log p(y, z) of weights z (B, D)."""
        misfit = (self.y - z @ self.x.T).square().sum(1) / self.variance + len(self.y) * math.log(self.variance)
        return -(misfit + z.square().sum(1) + (len(self.y) + z.shape[1]) * math.log(2 * math.pi)) / 2

    def elbo_loss(self, noise: Tensor) -> Tensor:
        """Estimate of -ELBO = KL(q, posterior) - log p(y) from noise (B, D)."""
        z, mean, factor = self.q(noise)
        if self.stop.entropy == "closed":
            entropy = factor.diagonal().log().sum() + len(mean) * (1 + math.log(2 * math.pi)) / 2
            return -self.log_joint(z).mean() - entropy
        mean, factor = self.stop.score.cross((mean, factor))  # the cut: q is judged as if it were another's
        log_q = log_density(self.stop.sample.cross(z), mean, factor)
        return (log_q - self.log_joint(z)).mean()

    # ---- the step

    def training_step(self, noise: Tensor, batch_idx: int) -> Tensor:
        loss = self.elbo_loss(noise)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/elbo", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how far q is from the posterior, and how much a draw's gradient varies

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and precision (D, D), exactly."""
        precision = self.x.T @ self.x / self.variance + torch.eye(self.x.shape[1], device=self.device)
        return torch.linalg.solve(precision, self.x.T @ self.y / self.variance), precision

    @torch.no_grad()
    def kl(self) -> Tensor:
        """KL(q, posterior) in nats."""
        (mean, precision), factor = self.posterior(), self.q.factor()
        apart = self.q.mean - mean
        spread = factor.T @ precision @ factor
        return (spread.trace() - torch.logdet(spread) - len(mean) + apart @ precision @ apart) / 2

    def gradient_variance(self, noise: Tensor) -> Tensor:
        """Of the gradient of one draw, summed over all parameters; estimated from noise (B, D)."""
        with torch.inference_mode(False), torch.enable_grad():
            draws = [torch.autograd.grad(self.elbo_loss(draw[None].clone()), [*self.q.parameters()]) for draw in noise]
            flat = torch.stack([torch.cat([part.flatten() for part in gradient]) for gradient in draws])
        return flat.var(0).sum()

    def validation_step(self, noise: Tensor, batch_idx: int) -> None:
        self.log("kl", self.kl(), prog_bar=True)
        self.log("gradient_variance", self.gradient_variance(noise), prog_bar=True)
        self.log("health/narrowest", self.q.factor().detach().diagonal().min())

    test_step = validation_step
