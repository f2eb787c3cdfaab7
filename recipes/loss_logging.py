r"""Loss logging: what is kept of a loss must not keep the loss's graph.

    images ──> network ──> training_loss ──> backward
                               └──‖──> history      ‖ stop.history: a number is kept, and not what made it

A loss tensor owns its graph, and until backward has run the graph owns every activation. Whoever keeps the tensor
keeps them: `total += loss` chains the graphs of all steps; a list of losses holds one for each. After backward the
activations are gone and the nodes remain. The loss of a pass that no backward follows, such as a validation loss
without no_grad, keeps everything. `.item()` gives a Python number, and on an accelerator waits for the device;
`.detach()` gives a tensor of four bytes, which may be read later.

PyTorch's FAQ, "My model reports cuda runtime error(2): out of memory", warns of it. The training is the same, bit for
bit, whatever is kept: only memory and time differ.

    python train.py recipe=loss_logging                                   # right: no node is kept
    python train.py recipe=loss_logging stop.history=before_backward      # broken: 32 nodes and 667 KB more every step

Figures of all arms, three seeds each: docs/recipes/loss_logging.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.backbones import backbone
from recipes.parts.labels import check_labels
from stopgrad import FlowContract, Stops
from stopgrad.audits.retention import kept_graphs

PAPER = "PyTorch FAQ"
BOUNDARIES: dict[str, list[str]] = {}
SWITCHES = {
    "history": [
        "item",  # a Python number
        "detach",  # a tensor without its graph
        "deferred",  # the same, read all at once every 100 steps
        "self_log",  # what Lightning's self.log keeps, at every step
        "running_sum",  # total = total + loss
        "after_backward",  # the loss itself: its graph is spent, and there
        "before_backward",  # the loss of a pass that no backward follows: its graph is live
    ]
}
# A node kept of every step is a leak; a mean of half a node is none or one.
METRICS = {
    "nodes_a_step": {"goal": "min", "margin": 0.01, "broken_above": 0.5},
    "bytes_a_step": {"goal": "min", "margin": 1.0, "broken_above": 100.0},
}
WITHOUT = {"history": "memory grows at every step: by the nodes of a graph, or by its activations too"}
EXEMPT = {"ranks": "BatchNorm normalises by the rank's own half of the batch"}
SMALL = ["recipe.width=2", "data.batch_size=16"]
FLOW = FlowContract({"training_loss": {"network": "open"}})


@dataclass
class History:
    """What is kept of each step's loss.

    Attributes:
        kind: a choice of ``stop.history``, except ``self_log``.
        kept: numbers or tensors, one a step.
        waiting: tensors that are read later (``deferred``).
        total: the sum of all (``running_sum``).
    """

    kind: str
    kept: list[Any] = field(default_factory=list)
    waiting: list[Tensor] = field(default_factory=list)
    total: Tensor | float = 0.0

    def keep(self, loss: Tensor) -> None:
        """Of a loss, a tensor of one element: the switch that this recipe is about."""
        match self.kind:
            case "item":
                self.kept.append(loss.item())
            case "detach":
                self.kept.append(loss.detach())
            case "deferred":
                self.waiting.append(loss.detach())
                if len(self.waiting) == 100:
                    self.read()
            case "running_sum":
                self.total = self.total + loss
            case _:
                self.kept.append(loss)

    def read(self) -> None:
        """All that waits, in one transfer from the device."""
        if self.waiting:
            self.kept += torch.stack(self.waiting).tolist()
            self.waiting.clear()


class LossLogging(L.LightningModule):
    """A classifier of images that keeps its losses.

    Args:
        stop: the chosen switch.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser.
        classes: outputs of the network.
        width: channels of the ResNet's first stage.
        monitored: images of a batch whose loss ``before_backward`` keeps.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        width: PositiveInt = 8,
        monitored: PositiveInt = 8,
    ) -> None:
        super().__init__()
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        stages, features = backbone("resnet", shape, width)
        self.network = nn.Sequential(stages, nn.Linear(features, classes))
        self.history = History(self.stop.history)
        self.steps_kept = 0
        self.optimizer, self.classes, self.monitored = optimizer, classes, monitored

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def training_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of images (B, C, H, W) and labels (B,)."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """As one writes it who takes eval() for no_grad(): the graph is built, and nobody goes back through it."""
        self.network.eval()
        loss = self.training_loss([tensor[: self.monitored] for tensor in batch])
        self.network.train()
        return loss

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        if self.stop.history == "self_log":
            self.log("loss/training", loss, on_step=True, on_epoch=True, prog_bar=True)
        else:
            self.history.keep(self.validation_loss(batch) if self.stop.history == "before_backward" else loss)
        self.steps_kept += 1
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse, before a run, a batch without labels, or labels that the network has no output for."""
        check_labels(data, self.classes, "source", "target")

    # ---- what is kept, by the count of the retention audit

    def graphs(self) -> tuple[int, int]:
        """Nodes, and bytes saved for backward, of all graphs that this module and Lightning's logged values keep."""
        trainer = self.trainer
        roots = {"module": self, "logged": trainer.logged_metrics, "callback": trainer.callback_metrics}
        found = kept_graphs(roots, exclude=self.parameters())
        return sum(kept.nodes for kept in found), sum(kept.bytes for kept in found)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        _, _, images, labels = batch  # of the source domain
        nodes, size = self.graphs()
        steps = max(1, self.steps_kept)
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean(), prog_bar=True)
        self.log_dict({"health/nodes": float(nodes), "health/bytes": float(size)})
        self.log_dict({"nodes_a_step": nodes / steps, "bytes_a_step": size / steps}, prog_bar=True)

    test_step = validation_step
