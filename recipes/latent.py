r"""Latent: a diffusion model is fitted to what an encoder makes, and must not make the encoder convenient.

    x ──> encoder ──> z = a x + noise ──┬──────> decoder ──> reconstruction_loss
                                        └──‖──> denoiser(z_t, t) ──> diffusion_loss      ‖ stop.latent

Latent diffusion end to end (Leng et al. 2025, REPA-E, arXiv:2504.10483): with the diffusion loss let into the encoder
the latent collapses, since what hardly varies is predicted with hardly an error. Here x ~ N(0, 1), z = a x + .1 n, a
decoder d z, and flow matching, v = e - z predicted by k(t) z_t at each of 50 times; all expectations are closed forms.
With the cut, k is the best linear denoiser for the z there is, and z is made for the reconstruction alone. Without it,
latents come to the same small width from every start, and the reconstruction pays (derived here).

    python train.py recipe=latent                        # right: the latent's standard deviation stays above 1
    python train.py recipe=latent stop.latent=none       # broken: .24

Figures of all arms, three seeds each: docs/recipes/latent.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due

PAPER = "Leng 2025"
# The first choice is the paper's, and the default.
BOUNDARIES = {"latent": ["detach", "data", "none", "scale", "reverse"]}
SWITCHES = {}
METRICS = {
    "latent_std": {"goal": None, "margin": 0.05, "broken_below": 0.5},  # the data's is 1
    "reconstruction_error": {"goal": "min", "margin": 0.01},  # the data's variance is 1
    "diffusion_loss": {"goal": None, "margin": 0.05},
}
WITHOUT = {"latent": "the latent collapses, because it is then easily predicted"}
FLOW = FlowContract(
    {
        "reconstruction_loss": {"encoder": "open", "decoder": "open", "denoiser": "blocked"},
        "diffusion_loss": {"denoiser": "open", "encoder": "blocked", "stop.latent": "blocked"},
    }
)


class Scales(nn.Module):
    """Factors, float64: of an encoder and a decoder one each, of a denoiser one for each time."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(start.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Latent(L.LightningModule):
    """A linear autoencoder and a linear denoiser of its latent, in expectation.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        diffusion_weight: of the diffusion loss.
        noise: standard deviation of what the encoder adds.
        times: of the flow, evenly spaced between 0 and 1.
    """

    FLOW = FLOW
    t: Tensor  # (times,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        diffusion_weight: NonNegativeFloat = 1.0,
        noise: PositiveFloat = 0.1,
        times: PositiveInt = 50,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.encoder = Scales(1 + torch.rand(1))
        self.decoder = Scales(torch.rand(1))
        self.denoiser = Scales(torch.zeros(times))
        self.register_buffer("t", (torch.arange(times, dtype=torch.float64) + 0.5) / times)
        self.weight, self.noise, self.optimizer = diffusion_weight, noise, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder, "denoiser": self.denoiser}

    # ---- the two losses: what this recipe is about

    def variance(self) -> Tensor:
        """(1,) of z."""
        return self.encoder(self.t.new_ones(1)).square() + self.noise**2

    def reconstruction_loss(self, batch: Tensor) -> Tensor:
        """E (d z - x)^2"""
        passed = self.decoder(self.encoder(self.t.new_ones(1)))
        return ((passed - 1).square() + self.decoder(self.t.new_full((1,), self.noise)).square()).sum()

    def diffusion_loss(self, batch: Tensor) -> Tensor:
        """E (k z_t - (e - z))^2, z_t = (1 - t) z + t e, over the times."""
        variance = self.stop.latent.cross(self.variance())  # the cut: the latent is not made to be predicted
        k, t = self.denoiser(torch.ones_like(self.t)), self.t
        spread = (1 - t).square() * variance + t.square()  # of z_t
        return (k.square() * spread - 2 * k * (t - (1 - t) * variance) + 1 + variance).mean()

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer, terms = counted(self), {}
        optimizer.zero_grad()
        for name, loss, weight in (
            ("reconstruction_loss", self.reconstruction_loss, 1.0),
            ("diffusion_loss", self.diffusion_loss, self.weight),
        ):
            value = loss(batch)
            backward(self, weight * value, name)
            terms[f"loss/{name}"] = value.detach()
        optimizer.step()
        if log_is_due(self):
            self.log_dict(terms, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how much of the latent is left

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("latent_std", self.variance().detach().sqrt().sum(), prog_bar=True)
        self.log("reconstruction_error", self.reconstruction_loss(batch).detach(), prog_bar=True)
        self.log("diffusion_loss", self.diffusion_loss(batch).detach())

    test_step = validation_step
