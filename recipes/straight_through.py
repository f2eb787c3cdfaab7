r"""Straight-through: a choice has no gradient, and takes that of its probabilities; how far it is off, exactly.

    theta ──> p ──┬──> sample ──> one-hot D ─────────────┐
                  └──> v = p, or ReinMax's of D and p ──> + ──> y ──> f(y) ──> relaxed_loss
                                            └──> ‖ ──> - ┘        ‖ stop.residual: y is D, with the gradient of v
                  v = 2 softmax(theta + (‖ log q - theta)) - p / 2     ‖ stop.inner: of ReinMax, q = (D + p) / 2

y = D + v - sg(v), with v = p (Bengio et al. 2013, arXiv:1308.3432), is right for a linear f; with ReinMax's v (Liu et
al. 2023, arXiv:2304.08612, algorithm 2) for a quadratic one too. Without the inner cut the softmax is q itself, and the
gradient exactly half of the straight-through one. The score function, f(D) log p(D), needs no relaxation, and is right
for every f. On (b - t)^2, b one of 0 and 1, t = .45 (a toy of Tucker et al. 2017, arXiv:1703.07370), p = 0 is best, and
straight-through comes to rest at p = t, since it takes b for p.

    python train.py recipe=straight_through_toy                         # right: ReinMax goes to p = 0
    python train.py recipe=straight_through_toy stop.estimator=st       # broken: it rests at p = .45
    python train.py recipe=straight_through                             # a quadratic of four categories

Figures of all arms, three seeds each: docs/recipes/straight_through.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Bengio 2013; Liu 2023"
# The first choice is ReinMax's, and the default.
BOUNDARIES = {
    "residual": ["detach", "data", "none"],
    "inner": ["detach", "data", "none"],
}
SWITCHES = {"estimator": ["reinmax", "st", "gumbel", "score", "exact"]}
METRICS = {
    "regret": {"goal": "min", "margin": 1e-3, "broken_above": 0.02},  # E f, less the lowest f
    "error": {"goal": "min", "margin": 0.01},  # of the expected gradient at the start, relative to the exact one
    "cosine": {"goal": "max", "margin": 0.01},
}
WITHOUT = {
    "residual": "y is a constant: no gradient",
    "inner": "half of the straight-through gradient",
    "estimator": "straight-through is off wherever f is not linear, and may rest where nothing is best",
}
SMALL = ["data.batch_size=2"]
FLOW = FlowContract({"relaxed_loss": {"logits": "open", "stop.residual": "blocked", "stop.inner": "blocked"}})


class Logits(nn.Module):
    """theta (K,), in float64."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        return self.theta


class StraightThrough(L.LightningModule):
    """A choice among K categories, of which the expected f is to be lowest; every sample is listed, but Gumbel's noise.

    Args:
        stop: the chosen strategies and switches.
        optimizer: from parameters to an optimiser.
        categories: K.
        function: ``quadratic``: (y - t)' A (y - t), A and t drawn; ``sine``: the sum of sin(3 A y);
            ``toy``: (b - .45)^2, b the second of two.
        temperature: of Gumbel's softmax.
        draws: of Gumbel's noise, a step.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        optimizer: Callable[..., torch.optim.Optimizer],
        categories: PositiveInt = 4,
        function: Literal["quadratic", "sine", "toy"] = "quadratic",
        temperature: PositiveFloat = 0.5,
        draws: PositiveInt = 256,
    ) -> None:
        super().__init__()
        if function == "toy" and categories != 2:
            raise ValueError(f"recipe.categories={categories}: the toy has 2")
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.function, self.temperature, self.draws, self.optimizer = function, temperature, draws, optimizer
        self.start: Tensor
        self.matrix: Tensor
        self.target: Tensor
        k, toy = categories, function == "toy"
        matrix, target = torch.diag(torch.arange(2.0)), torch.tensor([0, 0.45], dtype=torch.float64)
        self.register_buffer("start", torch.arange(2.0).double() if toy else torch.randn(k, dtype=torch.float64))
        self.register_buffer("matrix", matrix.double() if toy else torch.randn(k, k, dtype=torch.float64))
        self.register_buffer("target", target if toy else torch.randn(k, dtype=torch.float64))
        self.logits = Logits(self.start)
        row = dict(FLOW["relaxed_loss"])
        for boundary, users in (("residual", ("reinmax", "st", "gumbel")), ("inner", ("reinmax",))):
            if self.stop.estimator not in users:
                del row[f"stop.{boundary}"]
        self.FLOW = FlowContract({"relaxed_loss": row})

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"logits": self.logits}

    # ---- the loss: what this recipe is about

    def f(self, y: Tensor) -> Tensor:
        """(N,) of y (N, K)."""
        if self.function == "sine":
            return (3 * y @ self.matrix.T).sin().sum(1)
        apart = y - self.target
        return torch.einsum("ni,ij,nj->n", apart, self.matrix, apart)

    def carry(self, choice: Tensor, relaxed: Tensor) -> Tensor:
        """The choice, with the gradient of what it is relaxed to."""
        return choice + relaxed - self.stop.residual.cross(relaxed)  # the cut: only the gradient is the other's

    def relaxed(self, theta: Tensor) -> Tensor:
        """The loss: its expected gradient over all samples is the estimator's."""
        p, every = theta.softmax(-1), torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
        match self.stop.estimator:
            case "exact":
                return (p * self.f(every)).sum()
            case "score":
                return (p.detach() * self.f(every) * p.log()).sum()
            case "gumbel":
                noisy = theta - torch.empty(self.draws, len(theta), dtype=theta.dtype).exponential_().log()
                choice = one_hot(noisy.argmax(1), len(theta)).to(theta)
                return self.f(self.carry(choice, (noisy / self.temperature).softmax(1))).mean()
            case "st":
                return (p.detach() * self.f(self.carry(every, p.expand_as(every)))).sum()
        q = (every + p) / 2
        q = (theta + self.stop.inner.cross(q.log() - theta)).softmax(1)  # the cut: q, but as a softmax of theta
        return (p.detach() * self.f(self.carry(every, 2 * q - p / 2))).sum()

    def relaxed_loss(self, batch: Tensor) -> Tensor:
        return self.relaxed(self.logits())

    # ---- the step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.relaxed_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/relaxed", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how far the gradient is off, and where it leads

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The estimator's and the exact one (K,), at the start."""
        with torch.inference_mode(False), torch.enable_grad():
            theta = self.start.clone().requires_grad_()
            every = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
            exact = (theta.softmax(-1) * self.f(every)).sum()
            loss = self.relaxed(theta)
            found = torch.autograd.grad(loss, [theta])[0] if loss.requires_grad else torch.zeros_like(theta)
            return found.detach(), torch.autograd.grad(exact, [theta])[0]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        (found, exact), p = self.gradients(), self.logits().softmax(-1)
        values = self.f(torch.eye(len(p), dtype=p.dtype, device=p.device))
        self.log("regret", (p * values).sum() - values.min(), prog_bar=True)
        self.log("error", (found - exact).norm() / exact.norm())
        self.log("cosine", torch.cosine_similarity(found, exact, dim=0))
        self.log("health/last", p[-1])

    test_step = validation_step
