r"""DMD: a gradient that is known, written as a loss: x moves to where x - g lies, which must stay put.

    z ──> generator ──> x ──────────────────────────────> ‖ ──┐          ‖ stop.prediction: to see the other side
                        └──> g = s_fake - s_real ──> x - g ──> ‖ ──┴──> matching_loss      ‖ stop.target

Distribution matching distillation (Yin et al. 2024, arXiv:2311.18828, arXiv:2405.14867), and variational score
distillation before it (Wang et al. 2023, arXiv:2305.16213): the gradient of KL(fake, real) at a sample is the
difference g of the two scores, and the loss that has it is |x - sg(x - g)|^2 / 2. Alive, x - (x - g) is g, and the
gradient of |g|^2 / 2 is g times its own slope; for Gaussians, real of standard deviation s and fake of sigma, that is

    1/s^2 - 1/sigma^2 times as long (derived here):

-3 for a generator half as wide as the data: every step goes the wrong way, three times as far, and ever further. For
one that is wider the sign is right, so that a wide generator hides the mistake; and the step dies out as sigma comes
to s.

    python train.py recipe=dmd                         # right: the mean comes to 2
    python train.py recipe=dmd stop.target=none        # broken: it runs away

Figures of all arms, three seeds each: docs/recipes/dmd.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Yin 2024; Wang 2023"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["detach", "no_grad", "data", "none", "scale", "reverse"],
    "prediction": ["none", "detach"],
}
SWITCHES = {}
METRICS = {
    "mean_error": {"goal": "min", "margin": 0.01, "broken_above": 10.0},  # it begins at about 2
    "std_error": {"goal": "min", "margin": 0.01},
    "gradient_ratio": {"goal": None, "margin": 0.01},  # of the loss's and the KL's, at the first samples
}
WITHOUT = {
    "target": "the gradient is times 1/s^2 - 1/sigma^2: a narrow generator runs away",
    "prediction": "cut, what is left points the other way",
}
NEEDS = {"stop.prediction": ["stop.target=none"]}
FLOW = FlowContract({"matching_loss": {"generator": "open", "stop.prediction": "open", "stop.target": "blocked"}})


class Generator(nn.Module):
    """x = mu + sigma z, float64."""

    def __init__(self, mean: float, std: float, learn_std: bool) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean], dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor([std], dtype=torch.float64), learn_std)

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.std * z


class DMD(L.LightningModule):
    """A Gaussian generator that comes to a Gaussian, by the scores of both in closed form.

    Args:
        stop: the chosen strategies.
        optimizer: from parameters to an optimiser.
        mean, std: of the data; std is s.
        start_std: sigma, at the start; the mean starts near 0, by the seed.
        learn_std: whether sigma is learnt too.
        points: z, as many quantiles of a standard normal: the expectation is a sum.
    """

    FLOW = FLOW
    z: Tensor  # (points,)
    first_ratio: Tensor

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        mean: float = 2.0,
        std: PositiveFloat = 1.0,
        start_std: PositiveFloat = 0.5,
        learn_std: bool = False,
        points: PositiveInt = 400,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.generator = Generator(0.1 * torch.randn(()).item(), start_std, learn_std)
        shares = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        z = torch.special.ndtri(shares)
        self.register_buffer("z", z / z.square().mean().sqrt())
        self.register_buffer("first_ratio", torch.zeros((), dtype=torch.float64))
        self.mean, self.std, self.optimizer = mean, std, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    # ---- the loss: what this recipe is about

    def score_difference(self, x: Tensor) -> Tensor:
        """g (N,) = s_fake - s_real of samples (N,): the fake score is that of a Gaussian fitted to them before."""
        mean, variance = x.detach().mean(), x.detach().var(correction=0)
        return (x - self.mean) / self.std**2 - (x - mean) / variance

    def target(self, x: Tensor) -> Tensor:
        return x - self.score_difference(x)

    def matching_loss(self, batch: Tensor) -> Tensor:
        """Half the squared distance of samples from where the scores lead them; its value is that of no distance."""
        x = self.generator(self.z)
        target = self.stop.target(self.target, x)  # the cut: it is a gradient, not something to be learnt
        return (self.stop.prediction.cross(x) - target).square().mean() / 2

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 0:
            self.first_ratio.copy_(self.gradient_ratio())
        loss = self.matching_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/matching", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.stop.prediction.spelled == "detach" and "target" not in self.stop.flipped:
            target = self.stop.target.spelled
            raise ValueError(f"stop.prediction=detach: with stop.target={target} nothing learns; add stop.target=none")
        return self.optimizer([weight for weight in self.parameters() if weight.requires_grad])

    def gradient_ratio(self) -> Tensor:
        """Of the loss's gradient at the mean and that of KL(fake, real)."""
        (found,) = torch.autograd.grad(self.matching_loss(self.z), [self.generator.mean])
        return found[0] * self.std**2 / (self.generator.mean[0].detach() - self.mean)

    # ---- how far the generator is from the data

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("mean_error", (self.generator.mean[0].detach() - self.mean).abs(), prog_bar=True)
        self.log("std_error", (self.generator.std[0].detach().abs() - self.std).abs(), prog_bar=True)
        self.log("gradient_ratio", self.first_ratio)
        self.log("health/loss", self.matching_loss(batch).detach())

    test_step = validation_step
