r"""Deep equilibrium: a fixed point is found without a graph, and its last step alone is learnt through.

    z_0 ──> cell ──> ... ──> z_T-n ──> ‖ ──> cell ──> (n times) ──> z_T ──> ‖ ──> head ──> label_loss
              (x in each)              ‖ stop.iterates: no_grad, or none    ‖ stop.solution: cut, the cell stays random

The cell z -> tanh(W z + U x) is a contraction, so that z_T is its fixed point z* wherever it begins (Bai et al. 2019,
arXiv:1909.01377). With J = dcell/dz at z*, a gradient v that comes from the head reaches the cell's parameters as

    v (1 + J + ... + J^(n-1)) dcell/dparameters      n steps; n = 1: JFB (Fung et al. 2022, arXiv:2103.12803)
    v (1 - J)^-1 dcell/dparameters                   all, or by the implicit function theorem: stop.backward=implicit

One step costs the memory of one step, and is a direction of descent where the contraction is strong enough. The tiny
recursive model (Jolicoeur-Martineau 2025, arXiv:2510.04871, table 1) says when it is not enough: on Sudoku one step
does 56.5 where the whole of a recursion does 87.4. With everything cut the head learns from a random fixed point.

    python train.py recipe=deq                              # right: .97 of the digits
    python train.py recipe=deq stop.iterates=none           # .97, and 20 times the bytes
    python train.py recipe=deq stop.solution=detach         # broken: .9

Figures of all arms, three seeds each: docs/recipes/deq.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.labels import check_labels
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import log_is_due

PAPER = "Bai 2019; Fung 2022"
# The first choice is JFB's, and the default.
BOUNDARIES = {
    "iterates": ["no_grad", "detach", "data", "inference_mode", "none", "scale", "reverse"],
    "solution": ["none", "detach"],
}
SWITCHES = {"backward": ["steps", "implicit"]}  # implicit: the last step's gradient, solved for all steps
# A head alone, on the fixed point of a random cell, names .9 of the digits right.
METRICS = {"accuracy": {"goal": "max", "margin": 0.02, "broken_below": 0.93}}
WITHOUT = {
    "iterates": "the same accuracy, for the memory of every step",
    "solution": "cut, the cell stays random",
    "backward": "implicit, the exact gradient for a second fixed point",
}
REFUSES = {"stop.iterates=inference_mode": "Inference tensors cannot be saved for backward"}
SMALL = ["recipe.width=8", "recipe.solver_steps=8", "data.batch_size=16"]
FLOW = FlowContract(
    {"label_loss": {"cell": "open", "head": "open", "stop.iterates": "blocked", "stop.solution": "open"}}
)


class Cell(nn.Module):
    """z -> tanh(W z + U x), a contraction in the largest entry: no row of W sums to more than ``contraction``.

    Args:
        inputs: entries of x.
        width: entries of z.
        contraction: below 1.
    """

    def __init__(self, inputs: int, width: int, contraction: float) -> None:
        super().__init__()
        self.input, self.recurrent = nn.Linear(inputs, width), nn.Linear(width, width, bias=False)
        self.contraction = contraction

    def weight(self) -> Tensor:
        """W (width, width), its rows scaled down where they sum to too much."""
        rows = self.recurrent.weight.abs().sum(1, keepdim=True)
        return self.recurrent.weight * (self.contraction / rows).clamp(max=1)

    def forward(self, z: Tensor, drive: Tensor, weight: Tensor, steps: int) -> Tensor:
        """So many steps from z (B, width), with U x (B, width) and W."""
        for _ in range(steps):
            z = torch.tanh(torch.addmm(drive, z, weight.T))
        return z


class DEQ(L.LightningModule):
    """A classifier of images whose features are a fixed point.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser.
        classes: outputs of the head.
        width: entries of z.
        contraction: of the cell.
        solver_steps: T.
        last_steps: n, those that the gradient goes through.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        width: PositiveInt = 64,
        contraction: PositiveFloat = 0.9,
        solver_steps: PositiveInt = 60,
        last_steps: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.check_arguments(contraction, solver_steps, last_steps)
        self.cell, self.head = Cell(math.prod(shape), width, contraction), nn.Linear(width, classes)
        self.solver_steps, self.last_steps = solver_steps, last_steps
        self.classes, self.optimizer = classes, optimizer

    def check_arguments(self, contraction: float, solver_steps: int, last_steps: int) -> None:
        if contraction >= 1:
            raise ValueError(f"recipe.contraction={contraction}: there may be no fixed point; choose below 1")
        if last_steps >= solver_steps:
            raise ValueError(
                f"recipe.last_steps={last_steps}: choose from 1 to {solver_steps - 1}, or solver_steps larger"
            )
        if self.stop.backward == "implicit" and last_steps != 1:
            raise ValueError(f"recipe.last_steps={last_steps}: with stop.backward=implicit choose 1")

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"cell": self.cell, "head": self.head}

    # ---- the loss: what this recipe is about

    def features(self, images: Tensor) -> Tensor:
        """The fixed point z* (B, width) of images (B, C, H, W)."""
        drive, weight = self.cell.input(images.flatten(1)), self.cell.weight()
        start = torch.zeros_like(drive)
        before = self.solver_steps - self.last_steps
        z = self.stop.iterates(self.cell, start, drive, weight, before)  # the cut: how z* was found is forgotten
        if self.stop.backward == "implicit":
            return solved_backward(self.cell, z, drive, weight, self.solver_steps)
        return self.cell(z, drive, weight, self.last_steps)

    def label_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of images (B, C, H, W) and labels (B,)."""
        images, labels = batch
        solution = self.stop.solution.cross(self.features(images))
        return F.cross_entropy(self.head(solution), labels)

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.label_loss(batch)
        if log_is_due(self, steps_ahead=1):
            self.log("loss/label", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    # ---- how well it does

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse, before a run, a batch without labels, or labels that the head has no output for."""
        check_labels(data, self.classes, "source", "target")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, labels = batch
        drive, weight = self.cell.input(images.flatten(1)), self.cell.weight()
        z = self.cell(torch.zeros_like(drive), drive, weight, self.solver_steps)
        self.log("accuracy", (self.head(z).argmax(1) == labels).float().mean(), prog_bar=True)
        self.log("health/residual", (self.cell(z, drive, weight, 1) - z).abs().max())
        self.log("health/contraction", weight.abs().sum(1).max())

    test_step = validation_step


def solved_backward(cell: nn.Module, z: Tensor, drive: Tensor, weight: Tensor, steps: int) -> Tensor:
    """One step of the cell from its fixed point z, whose gradient g is that of all: g = v + J g, ``steps`` times."""
    point = z.detach().requires_grad_()
    after = cell(point, drive.detach(), weight.detach(), 1)
    solution = cell(z.detach(), drive, weight, 1)

    def solve(v: Tensor) -> Tensor:
        g = v
        for _ in range(steps):
            g = v + torch.autograd.grad(after, point, g, retain_graph=True)[0]
        return g

    if solution.requires_grad:
        solution.register_hook(solve)
    return solution
