r"""Consistency: the answer at more noise must agree with the answer at less, which must stay put.

    x + t_n+1 z ──> f(., t_n+1) ───────> ‖ ──┐                ‖ stop.prediction: to see what the other side does
                                             ├──> consistency_loss
    x + t_n z ────> teacher(., t_n) ───> ‖ ──┘                ‖ stop.target: what is less noisy stays put

Song et al. 2023, arXiv:2303.01469, algorithm 3 (consistency training): f(x, t) tells where the path through x, at noise
level t, begins. Without noise that is x itself, which c_skip and c_out hold exactly,

    f(x, t) = c_skip(t) x + c_out(t) F(x, t),   c_skip(eps) = 1, c_out(eps) = 0   (eq. 5 and appendix C)

and along a path the answer is one. What is known at eps is handed on from level to level, from less noise to more, and
the cut is what gives it a direction. Without it an answer at less noise also moves to those at more, which know least:
they meet in the middle, at a lower loss. The teacher is the network itself, as in Song & Dhariwal 2023,
arXiv:2310.14189, from whom the pseudo-Huber distance is too, or its running average.

    python train.py recipe=consistency                           # right: energy distance .07 to eight Gaussians
    python train.py recipe=consistency stop.target=none          # broken: .57, at .4 of the loss

Figures of all arms, three seeds each: docs/recipes/consistency.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import lightning as L
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recipes.parts.averages import follow
from recipes.parts.networks import mlp
from recipes.parts.plots import scatter
from recipes.parts.points import energy_distance
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due
from stopgrad.runner.samples import add_grid

PAPER = "Song 2023; Song & Dhariwal 2023"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "target": ["detach", "no_grad", "freeze", "data", "none", "scale", "reverse"],
    "prediction": ["none", "detach"],
}
SWITCHES = {}
METRICS = {
    "energy_distance": {"goal": "min", "margin": 0.05, "broken_above": 0.5},  # half of that of a single point, 1.0
    "disagreement": {"goal": None, "margin": 0.005},  # the squared loss on held-out points
}
WITHOUT = {
    "target": "answers at less noise move to those at more: they meet in the middle, at a lower loss",
    "prediction": "cut, what is known moves to what is not: it diverges",
}
NEEDS = {"stop.prediction": ["stop.target=none"]}
SMALL = ["data.batch_size=8", "recipe.width=16"]
FLOW = FlowContract({"consistency_loss": {"network": "open", "stop.prediction": "open", "stop.target": "blocked"}})

Share = Annotated[float, Field(ge=0, le=1)]


def noise_levels(count: int, least: float, most: float, rho: float = 7.0) -> Tensor:
    """(count,) from the least to the most: evenly spaced after a root (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    roots = torch.linspace(least ** (1 / rho), most ** (1 / rho), count, dtype=torch.double)
    return (roots**rho).float()


class ConsistencyFunction(nn.Module):
    """(B, D) and noise levels (B, 1) to where their paths begin, (B, D); at the least level that is the point itself.

    Args:
        dimensions: D.
        width: units of each of three hidden layers.
        least: eps, the least level.
        spread: sigma_data, the standard deviation of the data.
    """

    def __init__(self, dimensions: int, width: int, least: float, spread: float) -> None:
        super().__init__()
        self.least, self.spread = least, spread
        self.network = mlp(dimensions + 1, width, width, width, dimensions, activation=nn.SiLU)  # F

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        apart, scale = t - self.least, (t.square() + self.spread**2).sqrt()
        c_skip = self.spread**2 / (apart.square() + self.spread**2)
        c_out = self.spread * apart / scale
        return c_skip * x + c_out * self.network(torch.cat([x / scale, t.log() / 4], dim=1))


class Consistency(L.LightningModule):
    """A function of a point and its noise level, and a teacher: the function itself, or its running average.

    Args:
        stop: the chosen strategies.
        shape: (D,) of a point.
        optimizer: from parameters to an optimiser.
        width: units of each hidden layer.
        levels: N, of noise.
        least, most: eps and T, the least level and the one that samples start from.
        spread: sigma_data, the standard deviation of the data.
        decay: mu, of the running average that teaches; null: the function is its own teacher.
        distance: ``squared`` or ``pseudo_huber``, sqrt(|a - b|^2 + c^2) - c with c = .00054 sqrt D.
    """

    FLOW = FLOW
    levels: Tensor  # (N,)

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        width: PositiveInt = 128,
        levels: Annotated[int, Field(ge=2)] = 18,
        least: PositiveFloat = 0.002,
        most: PositiveFloat = 10.0,
        spread: PositiveFloat = 1.0,
        decay: Share | None = None,
        distance: Literal["squared", "pseudo_huber"] = "squared",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if self.stop.prediction.spelled == "detach" and "target" not in self.stop.flipped:
            target = self.stop.target.spelled
            raise ValueError(f"stop.prediction=detach: with stop.target={target} nothing learns; add stop.target=none")
        if least >= most:
            raise ValueError(f"recipe.least={least}: must lie below recipe.most={most}")
        self.function = ConsistencyFunction(shape[0], width, least, spread)
        self.average = None if decay is None else copy.deepcopy(self.function)
        self.register_buffer("levels", noise_levels(levels, least, most))
        self.shape, self.decay, self.distance, self.optimizer = shape, decay, distance, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.function}

    # ---- the loss: what this recipe is about

    def consistency_loss(self, points: Tensor) -> Tensor:
        """Points (B, D) at two neighbouring levels, drawn, of one noise z: how far the two answers are apart."""
        z, n = torch.randn_like(points), torch.randint(len(self.levels) - 1, (len(points),), device=points.device)
        squared = self.disagreement(points, z, n)
        if self.distance == "squared":
            return squared.mean()
        c = 0.00054 * self.shape[0] ** 0.5
        return ((squared + c**2).sqrt() - c).mean()

    def disagreement(self, points: Tensor, z: Tensor, n: Tensor) -> Tensor:
        """Squared distance (B,) of the answers for points (B, D) with noise z (B, D), at levels n + 1 and n (B,)."""
        more, less = self.levels[n + 1, None], self.levels[n, None]
        teacher = self.function if self.average is None else self.average
        prediction = self.stop.prediction.cross(self.function(points + more * z, more))
        target = self.stop.target(teacher, points + less * z, less)  # the cut: what is known at less noise stays put
        return (prediction - target).square().sum(1)

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = counted(self)
        loss = self.consistency_loss(batch)
        optimizer.zero_grad()
        backward(self, loss, "consistency_loss")
        optimizer.step()
        if self.average is not None and self.decay is not None:
            follow(self.average, self.function, self.decay)
        if log_is_due(self):
            self.log("loss/consistency", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.function.parameters())  # never the average

    # ---- what is sampled, in one step

    def generated(self, n: int) -> Tensor:
        """(n, D) from noise at the highest level; the same noise every time."""
        noise = torch.randn(n, self.shape[0], generator=torch.Generator().manual_seed(0)).to(self.levels)
        most = self.levels[-1].expand(n, 1)
        return self.function(most * noise, most)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(1)
        z = torch.randn(batch.shape, generator=generator).to(batch)
        n = torch.randint(len(self.levels) - 1, (len(batch),), generator=generator).to(batch.device)
        self.log("disagreement", self.disagreement(batch, z, n).mean())
        self.log("energy_distance", energy_distance(self.generated(len(batch)), batch), prog_bar=True)
        add_grid(self.logger, "samples", self.sample(64), self.global_step)

    test_step = validation_step

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """One picture (1, 3, H, W) of 1,000 samples, their first two numbers, each from -2.5 to 2.5."""
        return scatter(self.generated(1000)[:, :2] / 2.5)
