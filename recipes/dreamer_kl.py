r"""Dreamer's KL balance: one divergence, cut once on each side, so that each gives way as far as it is told to.

    x, h ──> posterior q ──┬──> ‖ ──> KL(q, p) <─────── prior p    dyn: the prior learns       ‖ stop.dyn_posterior
                           └────────> KL(q, p) <── ‖ ── prior p    rep: the posterior learns   ‖ stop.rep_prior
    h ───> prior p                                          world_loss = reconstruction + dyn KL + rep KL

DreamerV2 (Hafner et al. 2021, arXiv:2010.02193) balances the two by .8 and .2, DreamerV3 (arXiv:2301.04104) by .5 (dyn)
and .1 (rep). Here q = N(a x, 1), p = N(b h, 1), rho the correlation of x and h, and (1 - a)^2 / 2 the
reconstruction, so that the fixed point is

    a = 1 / (1 + rep (1 - rho^2)),   b = a rho

whatever dyn is, which only makes the prior faster. Uncut, dyn counts as rep does, and the posterior gives away what the
prior cannot tell; the other cut changes nothing but the prior's speed.

    python train.py recipe=dreamer_kl                             # right: a = .93985
    python train.py recipe=dreamer_kl stop.dyn_posterior=none     # broken: .72254, a quarter of x is lost

Figures of all arms: docs/recipes/dreamer_kl.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due

PAPER = "Hafner 2021; Hafner 2023"
# The first choice is the papers', and the default.
BOUNDARIES = {
    "dyn_posterior": ["detach", "data", "none", "scale"],
    "rep_prior": ["detach", "data", "none", "scale"],
}
SWITCHES = {}
METRICS = {
    "posterior": {"goal": "max", "margin": 1e-3, "broken_below": 0.8},  # a: of x, how much it keeps
    "prior_gap": {"goal": "min", "margin": 1e-3},  # |b - a rho|
}
WITHOUT = {
    "dyn_posterior": "the posterior gives way with the weight that was meant for the prior",
    "rep_prior": "the prior is a little faster, and nothing else",
}
SMALL = ["data.batch_size=20"]
FLOW = FlowContract(
    {
        "dyn_loss": {"prior": "open", "posterior": "blocked", "stop.dyn_posterior": "blocked"},
        "rep_loss": {"posterior": "open", "prior": "blocked", "stop.rep_prior": "blocked"},
        "reconstruction_loss": {"posterior": "open", "prior": "blocked"},
    }
)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL (B,) of normal distributions of unit variance, from their means (B, 1)."""
    return (q - p).square().sum(1) / 2


class DreamerKL(L.LightningModule):
    """A world model of one number: its posterior sees it, its prior something that goes with it.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        dyn, rep: weights of the two divergences, as DreamerV3's loss scales.
        free_nats: below which a divergence is not lowered further.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        dyn: NonNegativeFloat = 0.5,
        rep: NonNegativeFloat = 0.1,
        free_nats: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.posterior, self.prior = (nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2))
        self.dyn, self.rep, self.free_nats, self.optimizer = dyn, rep, free_nats, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"posterior": self.posterior, "prior": self.prior}

    # ---- the losses: what this recipe is about

    def dyn_loss(self, batch: Sequence[Tensor]) -> Tensor:
        x, h = batch
        posterior = self.stop.dyn_posterior.cross(self.posterior(x))  # the cut: the prior comes to it
        return divergence(posterior, self.prior(h)).clamp(min=self.free_nats).mean()

    def rep_loss(self, batch: Sequence[Tensor]) -> Tensor:
        x, h = batch
        prior = self.stop.rep_prior.cross(self.prior(h))  # the cut: it comes to the prior, a little
        return divergence(self.posterior(x), prior).clamp(min=self.free_nats).mean()

    def reconstruction_loss(self, batch: Sequence[Tensor]) -> Tensor:
        x, _ = batch
        return divergence(x, self.posterior(x)).mean()

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = counted(self)
        optimizer.zero_grad()
        weights = {"reconstruction": 1.0, "dyn": self.dyn, "rep": self.rep}
        for name, weight in weights.items():
            loss = getattr(self, f"{name}_loss")(batch)
            backward(self, weight * loss, f"{name}_loss")
            if log_is_due(self, steps_ahead=1):
                self.log(f"loss/{name}", loss.detach())
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- what the posterior keeps, and how far the prior is behind it

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        a, b = self.posterior.weight.squeeze(), self.prior.weight.squeeze()
        self.log("posterior", a, prog_bar=True)
        self.log("prior_gap", (b - a * data_of(self).correlation).abs(), prog_bar=True)
        losses = {name: getattr(self, f"{name}_loss")(batch) for name in ("reconstruction", "dyn")}
        self.log("world_loss", losses["reconstruction"] + (self.dyn + self.rep) * losses["dyn"])

    test_step = validation_step
