r"""Fine-tuning, exactly: from a random head it distorts features that were perfect before it began.

    x ──> B x ──> features ──‖──> v ──> target_loss      ‖ stop.features: the head v learns, the backbone B does not

Kumar et al. 2022, arXiv:2202.10054, section 3. The labels are y = w* B* x, the pretrained backbone is B* itself, and
the training inputs fill a subspace. Full fine-tuning from a random head v moves B along the training inputs alone: the
pair fits them, and is wrong on all others (theorem 3.2). Linear probing finds v = w*, with no error anywhere;
fine-tuning after it (LP-FT) has nothing left to distort.

    python train.py recipe=finetune_linear                           # right: error out of distribution 0
    python train.py recipe=finetune_linear stop.features=none        # broken: .35 to .44
    python train.py recipe=finetune_linear stop.unfreeze=at_once     # right: the head is in place before B moves

Figures of all arms, three seeds each: docs/recipes/finetune_linear.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due

PAPER = "Kumar 2022"
# The first choice is linear probing, and the default.
BOUNDARIES = {"features": ["detach", "no_grad", "freeze", "freeze_params", "none", "scale"]}
SWITCHES = {"unfreeze": ["never", "at_once"]}  # at_once: LP-FT
METRICS = {"ood_error": {"goal": "min", "margin": 0.01, "broken_above": 0.3}}  # of labels of variance 1
WITHOUT = {
    "features": "features that were perfect are wrong out of distribution",
    "unfreeze": "at once from a random head, the same; after the probe, no harm",
}
FLOW = FlowContract({"target_loss": {"head": "open", "backbone": "blocked", "stop.features": "blocked"}})


class LinearFineTune(L.LightningModule):
    """A pretrained linear backbone B and a new head v.

    Args:
        stop: the chosen strategies and switches.
        inputs: D, of x.
        features: F, the rows of B.
        optimizer: from parameters to an optimiser; it holds the backbone too, whatever is cut.
        unfreeze_after: batches of the probe before everything is fine-tuned.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        inputs: PositiveInt,
        features: PositiveInt,
        optimizer: Callable[..., torch.optim.Optimizer],
        unfreeze_after: PositiveInt = 1000,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        if self.stop.features.spelled == "none" and self.stop.unfreeze != "never":
            raise ValueError("stop.unfreeze=at_once: with stop.features=none nothing is frozen; choose never")
        self.head = nn.Linear(features, 1, bias=False)
        self.backbone = nn.Linear(inputs, features, bias=False)
        self.optimizer, self.unfreeze_after = optimizer, unfreeze_after

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    # ---- the loss: what this recipe is about

    def target_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """|v B x - y|^2 of inputs (N, D) and labels (N, 1)."""
        inputs, labels = batch
        if self.is_unfrozen:
            return mse_loss(self.head(self.backbone(inputs)), labels)
        features = self.stop.features(self.backbone, inputs)  # the cut: this loss must not teach the backbone
        return mse_loss(self.head(features), labels)

    @property
    def is_unfrozen(self) -> bool:
        """From the step alone, so that a resumed run and every rank find it so."""
        return self.stop.unfreeze == "at_once" and self.global_step >= self.unfreeze_after

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        if self.stop.features.spelled == "freeze_params":
            self.backbone.requires_grad_(self.is_unfrozen)
        optimizer = counted(self)
        loss = self.target_loss(batch)
        optimizer.zero_grad()  # to None: a gradient of zeros would let weight decay move what is frozen
        backward(self, loss, "target_loss")
        optimizer.step()
        if log_is_due(self):
            self.log("loss/target", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([*self.head.parameters(), *self.backbone.parameters()])

    # ---- the pretrained backbone, and how wrong the pair is in distribution and out of it

    def setup(self, stage: str) -> None:
        self.pretrained: Tensor = data_of(self).backbone
        if stage == "fit":
            self.backbone.weight.data.copy_(self.pretrained)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Inputs and labels like the training's, then those out of distribution."""
        inputs, labels, other_inputs, other_labels = batch
        self.log("error", mse_loss(self.head(self.backbone(inputs)), labels))
        self.log("ood_error", mse_loss(self.head(self.backbone(other_inputs)), other_labels), prog_bar=True)
        moved = self.backbone.weight - self.pretrained.to(self.device)
        self.log("health/weights_moved", moved.abs().max())

    test_step = validation_step
