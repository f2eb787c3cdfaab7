r"""DARTS: an architecture is judged by weights that have moved because of it, so the move must stay live.

    alpha, w ──> train_loss ──> dL/dw ──> w' = w - xi dL/dw ──> ‖ ──> val_loss(w', alpha)     ‖ stop.inner: none
    w ──> ‖ ─────────────────────────────────┘                      ‖ stop.weights: val_loss must not teach w
    alpha ──> ‖ ──> train_loss(w, alpha)                            ‖ stop.alpha: train_loss must not teach alpha

Liu et al. 2019, arXiv:1806.09055, eq. 7: alpha goes down the validation loss at w', one inner step of size xi ahead.
The second-order gradient lies in w': with it cut, or xi = 0, alpha is judged as if w did not follow it. With
L_val = alpha w - 2 alpha + 1 and L_train = (w - alpha)^2, whose optimum is (1, 1), w comes to alpha, and alpha to

    2 / (1 + 2 xi)      (derived here): at xi = .5 that is 1; first order 2.

Here the cut must be absent. The two others, which keep each loss to its own parameters, must not.

    python train.py recipe=darts                            # right: (1, 1)
    python train.py recipe=darts stop.inner=detach          # first order: (2, 2)

Figures of all arms, three seeds each: docs/recipes/darts.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import lightning as L
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, log_is_due, raw

PAPER = "Liu 2019"
# The first choice is the paper's, and the default.
BOUNDARIES = {
    "inner": ["none", "detach", "data", "scale", "reverse"],
    "weights": ["detach", "data", "none"],
    "alpha": ["detach", "data", "none"],
}
SWITCHES = {}
METRICS = {"optimum_error": {"goal": "min", "margin": 0.01, "broken_above": 0.9}}  # |alpha - 1|; it begins at about 1
WITHOUT = {
    "inner": "cut, alpha is judged as if the weights did not follow it: (2, 2), not (1, 1)",
    "weights": "gradients of w that nobody uses",
    "alpha": "gradients of alpha that nobody uses",
}
EXEMPT = {"picture": "figures of two parameters, exact, which the table holds"}
FLOW = FlowContract(
    {
        "val_loss": {"alpha": "open", "weights": "blocked", "stop.inner": "open", "stop.weights": "blocked"},
        "train_loss": {"weights": "open", "alpha": "blocked", "stop.alpha": "blocked"},
    }
)


class Scalar(nn.Module):
    """One parameter, float64, near ``start``."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(start + 0.1 * torch.randn(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.value.view(1)


class DARTS(L.LightningModule):
    """An architecture of one number and a network of one weight, each with a loss of its own.

    Args:
        stop: the chosen strategies.
        alpha_optimizer, optimizer: from parameters to an optimiser: of alpha, and of w.
        xi: size of the inner step; 0: first order.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        alpha_optimizer: Callable[..., torch.optim.Optimizer],
        optimizer: Callable[..., torch.optim.Optimizer],
        xi: NonNegativeFloat = 0.5,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.alpha, self.w = Scalar(2.0), Scalar(-2.0)
        self.xi, self.alpha_optimizer, self.optimizer = xi, alpha_optimizer, optimizer

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"alpha": self.alpha, "weights": self.w}

    # ---- the two losses: what this recipe is about

    def fit(self, w: Tensor, alpha: Tensor) -> Tensor:
        """L_train"""
        return (w - alpha).square().sum()

    def val_loss(self, batch: Tensor) -> Tensor:
        """L_val at the weights after an inner step."""
        alpha, w = self.alpha(), self.stop.weights.cross(self.w())  # the cut: validation must not teach the weights
        w = w if w.requires_grad else w.clone().requires_grad_()  # a leaf: the inner gradient is taken here
        (gradient,) = torch.autograd.grad(self.fit(w, alpha), w, create_graph=True)
        stepped = self.stop.inner.cross(w - self.xi * gradient)  # no cut: the step is because of alpha
        return (alpha * stepped - 2 * alpha + 1).sum()

    def train_loss(self, batch: Tensor) -> Tensor:
        """L_train at the architecture as it is."""
        return self.fit(self.w(), self.stop.alpha.cross(self.alpha()))  # the cut: training must not teach alpha

    # ---- the order of backward, zero_grad and step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        terms = {}
        for name, loss, optimizer in (
            ("val_loss", self.val_loss, counted(self, 0)),
            ("train_loss", self.train_loss, raw(self, 1)),
        ):
            value = loss(batch)
            optimizer.zero_grad()
            backward(self, value, name)
            optimizer.step()
            terms[f"loss/{name}"] = value.detach()
        if log_is_due(self):
            self.log_dict(terms, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.alpha_optimizer(self.alpha.parameters()), self.optimizer(self.w.parameters())]

    # ---- how far from the optimum

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        alpha, w = self.alpha().detach(), self.w().detach()
        self.log("optimum_error", (alpha - 1).abs().sum(), prog_bar=True)
        self.log_dict({"alpha": alpha.sum(), "w": w.sum(), "health/val_loss": (alpha * w - 2 * alpha + 1).sum()})

    test_step = validation_step
