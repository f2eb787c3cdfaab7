r"""GAN: the discriminator's loss must not reach the generator, and the generator's must pass through the discriminator.

    noise ──> generator ──> fakes ──‖──> discriminator ──> d_loss      ‖ stop.fakes: D learns, G does not
                                           reals ──┘
    noise ──> generator ──> fakes ─────> discriminator ──> g_loss      ‖ stop.discriminator: G learns, D does not
                                              ‖ (its weights)

Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1: D ascends with G's samples held fixed, then G descends. Hinge:
Miyato et al. 2018, arXiv:1802.05957, eq. 16-17. WGAN-GP: Gulrajani et al. 2017, arXiv:1704.00028, eq. 3. R1: Mescheder
et al. 2018, arXiv:1801.04406, eq. 9. With two parameters and exact: recipe=dirac_gan.

Without the cut, D's loss writes gradients into G. If G's gradients are zeroed before G's own backward, nothing changes
but the cost; if not, G is trained to help D. The opposite mistake is to cut inside a gradient penalty: the penalty is
then a constant, and D is free to grow.

    python train.py recipe=gan                                           # right: Frechet distance 678 -> 4.2, 30 s
    python train.py recipe=gan stop.fakes=none stop.zero_grad=late       # broken: 678 -> 970

Figures of all arms, three seeds each: docs/recipes/gan.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from torch.nn.utils.parametrizations import spectral_norm

from recipes.parts.averages import follow
from recipes.parts.frechet import sample_quality
from recipes.parts.networks import mlp
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw
from stopgrad.runner.samples import add_grid

PAPER = "Goodfellow 2014; Gulrajani 2017; Mescheder 2018"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "fakes": ["detach", "no_grad", "freeze", "detach_", "data", "inference_mode", "none", "scale", "reverse"],
    "discriminator": ["freeze", "none"],
}
SWITCHES = {
    "zero_grad": ["timely", "late"],  # late: what D's loss left in G is still there when G steps
    "penalty": ["kept", "no_create_graph", "detached"],  # the gradient of D inside the penalty
}
# What a comparison judges by: arms within the margin of each other are the same; beyond the line an arm is broken.
METRICS = {
    "frechet": {"goal": "min", "margin": 2.0, "broken_above": 678.0},  # the untrained generator's, seed 0
    "health/slope": {"goal": None, "margin": 0.2, "broken_above": 20.0},  # 1 where WGAN-GP works (eq. 3)
}
WITHOUT = {
    "fakes": "G is trained to help D, where its gradients are not zeroed in time",
    "discriminator": "gradients of D that nobody uses",
    "zero_grad": "late, G steps on what D's loss left in it",
    "penalty": "cut, the penalty is a constant and D's slope leaves 1",
}
REFUSES = {"stop.fakes=inference_mode": "Inference tensors cannot be saved for backward"}
SMALL = ["recipe.width=32", "data.batch_size=24"]
FLOW = FlowContract(
    {
        "d_loss": {"discriminator": "open", "generator": "blocked", "stop.fakes": "blocked"},
        "g_loss": {"generator": "open", "discriminator": "blocked", "stop.discriminator": "blocked"},
    }
)

D_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "non_saturating": lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
    "hinge": lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
}
G_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "non_saturating": lambda fake: softplus(-fake).mean(),
    "hinge": lambda fake: -fake.mean(),
    "wasserstein": lambda fake: -fake.mean(),
}


def perceptrons(shape: Sequence[int], latent: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Generator (B, latent) -> (B, C, H, W) in [-1, 1] and discriminator (B, C, H, W) -> (B, 1), for 8x8 images."""
    pixels = math.prod(shape)
    unflatten = nn.Unflatten(1, tuple(shape)), nn.Tanh()  # Tanh last: a view is what detach_ would refuse
    leaky = partial(nn.LeakyReLU, 0.2)
    return (
        nn.Sequential(*mlp(latent, width, width, pixels), *unflatten),
        nn.Sequential(nn.Flatten(), *mlp(pixels, width, width, 1, activation=leaky)),
    )


def dcgan(shape: Sequence[int], latent: int, width: int) -> tuple[nn.Module, nn.Module]:
    """The same for 28x28 or 32x32 images: Radford et al. 2016, arXiv:1511.06434, without BatchNorm in D."""
    channels, height, _ = shape
    low = height // 4  # 7 or 8
    generator = nn.Sequential(
        nn.Linear(latent, 2 * width * low * low),
        nn.Unflatten(1, (2 * width, low, low)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),  # (B, width, 2 low, 2 low)
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),  # (B, C, 4 low, 4 low)
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * width * low * low, 1),
    )
    return generator, discriminator


class GAN(L.LightningModule):
    """A generator against a discriminator, in manual optimisation; a batch is n_critic steps of D and one of G.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        network: ``mlp`` for 8x8 images, ``dcgan`` for 28x28 and 32x32.
        latent: dimensions of the noise.
        width: units, or channels, of the hidden layers.
        use_spectral_norm: on every layer of D (Miyato et al. 2018).
        loss: of both players.
        penalty: on D's gradient: ``r1`` at the reals, ``interpolates`` towards norm 1 (WGAN-GP).
        penalty_weight: gamma of R1, lambda of WGAN-GP.
        n_critic: D's steps for each step of G; a batch is split among them.
        ema_decay: of the generator's running average, which is the one that is sampled.
        g_optimizer, d_optimizer: from parameters to an optimiser.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        g_optimizer: Callable[..., torch.optim.Optimizer],
        d_optimizer: Callable[..., torch.optim.Optimizer],
        network: Literal["mlp", "dcgan"] = "mlp",
        latent: PositiveInt = 64,
        width: PositiveInt = 256,
        use_spectral_norm: bool = False,
        loss: Literal["non_saturating", "hinge", "wasserstein"] = "wasserstein",
        penalty: Literal["none", "r1", "interpolates"] = "interpolates",
        penalty_weight: NonNegativeFloat = 10.0,
        n_critic: PositiveInt = 3,
        ema_decay: NonNegativeFloat = 0.99,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if network == "dcgan" and tuple(shape[1:]) not in ((28, 28), (32, 32)):
            raise ValueError(f"recipe.network=dcgan: images of {list(shape)}; choose 28x28 or 32x32 images, or mlp")
        self.generator, self.discriminator = (perceptrons if network == "mlp" else dcgan)(shape, latent, width)
        if use_spectral_norm:
            for layer in self.discriminator.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    spectral_norm(layer)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.latent, self.loss, self.n_critic, self.ema_decay = latent, loss, n_critic, ema_decay
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer
        self.terms: dict[str, Tensor] = {}  # the last value of each term, detached

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse a batch from which each step of D does not get an image."""
        size = getattr(data, "batch_size", self.n_critic)
        if size < self.n_critic:
            raise ValueError(f"data.batch_size={size}: fewer than recipe.n_critic={self.n_critic} steps, on each rank")

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def to_compile(self) -> list[nn.Module]:
        """torch.compile has no second derivatives, which a penalty needs of D."""
        return [self.generator] if self.penalty != "none" else [self.generator, self.discriminator]

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, self.latent, device=self.device)

    # ---- the two losses: what this recipe is about

    def d_loss(self, reals: Tensor) -> Tensor:
        """D tells reals (B, C, H, W) from as many fresh fakes."""
        fakes = self.stop.fakes(self.generator, self.noise(len(reals)))  # the cut: this loss must not teach G
        loss = D_LOSS[self.loss](self.discriminator(reals), self.discriminator(fakes))
        return loss if self.penalty == "none" else loss + self.penalty_weight * self.gradient_penalty(reals, fakes)

    def gradient_penalty(self, reals: Tensor, fakes: Tensor) -> Tensor:
        """R1: E|grad D|^2 / 2 at the reals; WGAN-GP: E(|grad D| - 1)^2 between reals and fakes."""
        if self.penalty == "r1":
            points = reals
        else:
            mix = torch.rand(len(reals), *[1] * (reals.ndim - 1), device=self.device)
            points = mix * reals + (1 - mix) * fakes
        points = points.detach().requires_grad_()  # a leaf: D's gradient is taken here, nothing flows on to G
        keep = self.stop.penalty != "no_create_graph"
        (gradient,) = torch.autograd.grad(self.discriminator(points).sum(), points, create_graph=keep)
        if self.stop.penalty == "detached":
            gradient = gradient.detach()  # never right: the penalty becomes a constant
        norm = gradient.flatten(1).norm(dim=1)
        self.terms["health/slope"] = norm.detach().mean()
        return norm.square().mean() / 2 if self.penalty == "r1" else (norm - 1).square().mean()

    def g_loss(self, reals: Tensor) -> Tensor:
        """G makes D take fresh fakes, as many as ``reals``, for real."""
        fakes = self.generator(self.noise(len(reals)))
        logits = self.stop.discriminator(self.discriminator, fakes)  # through D to G; D itself must not learn from it
        return G_LOSS[self.loss](logits)

    # ---- the order of backward, zero_grad and step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        g_optimizer, d_optimizer = counted(self, 0), raw(self, 1)  # Lightning's global_step is G's, the batches
        for reals in batch.tensor_split(self.n_critic):  # chunk could give fewer
            d_optimizer.zero_grad()
            d_loss = self.d_loss(reals)
            backward(self, d_loss, "d_loss")
            d_optimizer.step()

        if self.stop.zero_grad == "timely":
            g_optimizer.zero_grad()
        g_loss = self.g_loss(reals)
        backward(self, g_loss, "g_loss")
        g_optimizer.step()
        if self.stop.zero_grad == "late":
            g_optimizer.zero_grad()

        follow(self.average, self.generator, self.ema_decay)
        self.terms |= {"loss/d": d_loss.detach(), "loss/g": g_loss.detach()}
        if log_is_due(self):
            self.log_dict(self.terms, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.g_optimizer(self.generator.parameters()), self.d_optimizer(self.discriminator.parameters())]

    # ---- how good the samples are

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """(n, C, H, W) from the averaged generator; the same noise every time, and no draw from the global stream."""
        noise = torch.randn(n, self.latent, generator=torch.Generator().manual_seed(0))
        noise = noise.to(next(self.average.parameters()).device)  # in setup, the weights are still on the CPU
        mode = self.average.training
        samples = self.average.eval()(noise)
        self.average.train(mode)
        return samples

    def setup(self, stage: str) -> None:
        self.quality = sample_quality(data_of(self), self.sample if stage == "fit" else None)

    def validation_step(self, reals: Tensor, batch_idx: int) -> None:
        if self.quality:
            samples = self.sample(self.quality.num_reals)
            self.log_dict(self.quality(samples), prog_bar=True)
            add_grid(self.logger, "samples", samples[:64], self.global_step)

    test_step = validation_step
