r"""VQ-VAE: the gradient is carried across a rounding that has none, and each loss has a side that stays put.

    images ──> encoder ──> z ──> nearest code e ──> z + ‖(e - z) ──> decoder ──> reconstruction_loss
                           z ──‖──> |e - z|^2 ──> codebook_loss     ‖ stop.quantised: what carries z to e is constant
                           z ─────> |z - e|^2 ──> commitment_loss   ‖ stop.codebook: the codes move, the encoder not
                           e ──‖──────┘                             ‖ stop.commitment: the encoder moves, the codes not

van den Oord et al. 2017, arXiv:1711.00937, eq. 3, with the straight-through estimator of Bengio et al. 2013,
arXiv:1308.3432: z_q = z + sg(e - z). In value that is e. Without the cut it is e as a function too, and a small step of
z does not change which code is nearest: the encoder's gradient is 0. The cut is the estimator. So it is in the rotation
trick (Fifty et al. 2024, arXiv:2410.06424), z_q = sg(|e| / |z| R) z, where a rotation and a factor carry z to e, and in
finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505), where e is z rounded and no codebook is learnt.

Without it the encoder learns nothing of the reconstruction, and all images become one. Without the commitment
(recipe.commitment_weight=0) nothing holds z near the codes, and it grows.

    python train.py recipe=vqvae                                # right: squared error 1.4, perplexity 29 of 32 codes
    python train.py recipe=vqvae stop.quantised=none            # broken: 4.7, as for the mean image; perplexity 4

Figures of all arms, three seeds each: docs/recipes/vqvae.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import lightning as L
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.networks import mlp
from recipes.parts.plots import bars
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "van den Oord 2017; Bengio 2013; Fifty 2024; Mentzer 2023"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "quantised": ["detach", "detach_", "data", "none", "scale", "reverse"],
    "codebook": ["detach", "data", "none", "scale", "reverse"],
    "commitment": ["detach", "data", "none", "scale", "reverse"],
}
SWITCHES = {
    "estimator": ["straight_through", "rotation"],  # what carries z to e: a translation, or a rotation and a factor
    "update": ["gradient", "average"],  # of the codes: by the codebook's loss, or to the mean of what they stand for
}
METRICS = {
    # Sum over the pixels, of images in [0, 1]; 4.7 for the mean image.
    "squared_error": {"goal": "min", "margin": 0.1, "broken_above": 4.0},
    "perplexity": {"goal": "max", "margin": 2.0, "broken_below": 5.0},  # of 32 codes
    "encoder_norm": {"goal": None, "margin": 0.5, "broken_above": 30.0},  # ten times that of the codes
}
WITHOUT = {
    "quantised": "the encoder learns nothing of the reconstruction: all images become one",
    "codebook": "the codebook's loss moves the encoder too: a stronger commitment",
    "commitment": "the encoder's loss moves the codes too",
    "estimator": "rotation, the gradient turns with the code",
    "update": "average, no gradient moves the codes",
}
EXEMPT = {"ranks stop.update=average": "a rank's means are of its own half of the batch"}
SMALL = ["data.batch_size=16", "recipe.width=16"]
FLOW = FlowContract(
    {
        "reconstruction_loss": {
            "encoder": "open",
            "decoder": "open",
            "codebook": "blocked",
            "stop.quantised": "blocked",
        },
        "codebook_loss": {"codebook": "open", "encoder": "blocked", "stop.codebook": "blocked"},
        "commitment_loss": {"encoder": "open", "codebook": "blocked", "stop.commitment": "blocked"},
    }
)

Share = Annotated[float, Field(ge=0, le=1)]


class Codes(NamedTuple):
    """A batch and its codes: images (B, C, H, W); z and e (B, L, D); index (B, L), which code it is."""

    images: Tensor
    z: Tensor
    e: Tensor
    index: Tensor


def rotation(z: Tensor, e: Tensor) -> tuple[Tensor, ...]:
    """What carries z to e (..., D): a factor, and the unit vectors of z, of e and of the middle between them."""
    from_, to = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
    factor = e.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return factor, from_, to, F.normalize(from_ + to, dim=-1)


def rotated(z: Tensor, factor: Tensor, from_: Tensor, to: Tensor, middle: Tensor) -> Tensor:
    """factor R z, with the rotation R = 1 - 2 middle middle^T + 2 to from^T (Fifty et al. 2024)."""
    along_middle, along = ((z * axis).sum(-1, keepdim=True) for axis in (middle, from_))
    return factor * (z - 2 * along_middle * middle + 2 * along * to)


def bounded(z: Tensor, levels: Tensor) -> Tensor:
    """z (..., D), each number within the range of so many ``levels`` (D,) around 0 (Mentzer et al. 2023)."""
    half = (levels - 1) * 1.001 / 2
    offset = 0.5 * (levels % 2 == 0)  # an even number of levels has one more below 0
    return (z + (offset / half).atanh()).tanh() * half - offset


class VQVAE(L.LightningModule):
    """An encoder, a codebook and a decoder, of images.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser.
        width: units of the hidden layer of encoder and decoder.
        positions: L, codes an image.
        codes: K, in the codebook.
        dimensions: D, of a code.
        levels: of finite scalar quantisation, a number from 3 for each dimension; null for a codebook.
        commitment_weight: beta.
        decay: gamma, of the running means of ``stop.update=average``.
    """

    FLOW: FlowContract  # of the losses that there are
    counts: Tensor  # (K,)
    sums: Tensor  # (K, D)
    levels: Tensor  # (D,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 128,
        positions: PositiveInt = 4,
        codes: PositiveInt = 32,
        dimensions: PositiveInt = 8,
        levels: Sequence[Annotated[int, Field(ge=3)]] | None = None,
        commitment_weight: NonNegativeFloat = 0.25,
        decay: Share = 0.99,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.scalar, self.learnt = levels is not None, levels is None and self.stop.update == "gradient"
        self.codes, dimensions = (math.prod(levels), len(levels)) if levels else (codes, dimensions)
        pixels, size = math.prod(shape), positions * dimensions
        self.encoder = nn.Sequential(nn.Flatten(), mlp(pixels, width, size), nn.Unflatten(1, (positions, dimensions)))
        self.decoder = nn.Sequential(nn.Flatten(), mlp(size, width, pixels), nn.Unflatten(1, tuple(shape)))
        self.codebook = nn.Embedding(codes, dimensions)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)
        self.register_buffer("levels", torch.tensor(levels or [], dtype=torch.float), persistent=False)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.weight.detach().clone())
        self.commitment_weight, self.decay, self.optimizer = commitment_weight, decay, optimizer
        named = [*self.losses(), *self.parameter_groups(), *(f"stop.{name}" for name in BOUNDARIES)]
        self.FLOW = FlowContract(
            {
                loss: {part: state for part, state in row.items() if part in named}
                for loss, row in FLOW.items()
                if loss in named
            }
        )

    def parameter_groups(self) -> dict[str, nn.Module]:
        groups: dict[str, nn.Module] = {"encoder": self.encoder, "decoder": self.decoder, "codebook": self.codebook}
        return groups if self.learnt else {name: groups[name] for name in ("encoder", "decoder")}

    def to_compile(self) -> list[nn.Module]:
        """What is compiled has one backward, and the encoder one for each loss."""
        return [self.decoder]

    # ---- the codes

    def vectors(self) -> Tensor:
        """(K, D): the codebook."""
        return self.codebook.weight if self.learnt else self.sums / self.counts.clamp_min(1e-5)[:, None]

    def collect(self, images: Tensor) -> Codes:
        """Images (B, C, H, W) with their codes: the nearest, or z rounded."""
        z = self.encoder(images)
        if self.scalar:
            z, steps = bounded(z, self.levels), self.levels // 2
            which = (z.round() + steps) * torch.cat([self.levels.new_ones(1), self.levels[:-1].cumprod(0)])
            return Codes(images, z / steps, z.round() / steps, which.sum(-1).long())
        with torch.no_grad():
            index = torch.cdist(z.flatten(0, 1), self.vectors()).argmin(1).view(z.shape[:2])  # no gradient either way
        return Codes(images, z, F.embedding(index, self.vectors()), index)

    # ---- the losses: what this recipe is about

    def quantised(self, z: Tensor, e: Tensor) -> Tensor:
        """e in value (B, L, D); the gradient goes on to z."""
        if self.stop.estimator == "rotation":
            carry = self.stop.quantised.cross(rotation(z, e))  # the cut: what carries z to e is constant
            return rotated(z, *carry)
        carry = self.stop.quantised.cross(e - z)  # the same cut; without it z cancels and only e is left
        return z + carry

    def reconstruction_loss(self, codes: Codes) -> Tensor:
        """Squared error, summed over the pixels, of images in [0, 1]; mean over the batch."""
        decoded = self.decoder(self.quantised(codes.z, codes.e))
        return (decoded - codes.images).square().flatten(1).sum(1).mean() / 4

    def codebook_loss(self, codes: Codes) -> Tensor:
        """|e - sg(z)|^2: the codes move to what they stand for."""
        z = self.stop.codebook.cross(codes.z)  # the cut: the encoder does not move to the codes
        return (codes.e - z).square().sum(-1).mean()

    def commitment_loss(self, codes: Codes) -> Tensor:
        """beta |z - sg(e)|^2: the encoder stays near the codes."""
        e = self.stop.commitment.cross(codes.e)  # the cut: the codes do not move to the encoder
        return self.commitment_weight * (codes.z - e).square().sum(-1).mean()

    def losses(self) -> dict[str, Callable[[Codes], Tensor]]:
        """Those of the kind of codes that there are."""
        found = {"codebook_loss": self.codebook_loss} if self.learnt else {}
        found |= {"commitment_loss": self.commitment_loss} if self.commitment_weight and not self.scalar else {}
        return found | {"reconstruction_loss": self.reconstruction_loss}

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer, codes = counted(self), self.collect(batch)
        optimizer.zero_grad()
        terms = {name: loss(codes) for name, loss in self.losses().items()}
        for name, loss in terms.items():
            backward(self, loss, name, retain_graph=name != "reconstruction_loss")  # z is behind all of them
        optimizer.step()
        if self.stop.update == "average" and not self.scalar:
            self.average(codes)
        if log_is_due(self):
            self.log_dict({f"loss/{name[:-5]}": loss.detach() for name, loss in terms.items()}, prog_bar=True)

    @torch.no_grad()
    def average(self, codes: Codes) -> None:
        """Running numbers and sums of the z that each code stands for (van den Oord et al., appendix A.1)."""
        chosen = F.one_hot(codes.index.flatten(), self.codes).to(codes.z)  # (B L, K)
        self.counts.lerp_(chosen.sum(0).to(self.counts), 1 - self.decay)
        self.sums.lerp_((chosen.T @ codes.z.flatten(0, 1)).to(self.sums), 1 - self.decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([p for group in self.parameter_groups().values() for p in group.parameters()])

    # ---- what comes out, and how many codes are in use

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.collect(images).e)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        codes = self.collect(batch)
        usage = F.one_hot(codes.index.flatten(), self.codes).to(codes.z).mean(0)
        error = (self.decoder(codes.e) - batch).square().flatten(1).sum(1).mean() / 4
        self.log("squared_error", error, prog_bar=True)
        self.log("perplexity", torch.special.entr(usage).sum().exp(), prog_bar=True)
        self.log("encoder_norm", codes.z.norm(dim=-1).mean())
        add_grid(self.logger, "reconstructions", self.sample(64), self.global_step)
        add_grid(self.logger, "code_usage", bars(usage), self.global_step)

    test_step = validation_step

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """(n, C, H, W): rows of held-out images, as many as fill a square, each above the row of what comes out."""
        images = data_of(self).held_out_images[: n // 2].to(self.device)
        rows = [each.split(math.isqrt(n)) for each in (images, self(images).clamp(-1, 1))]
        return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])
