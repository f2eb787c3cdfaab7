r"""Branch: a second head on a trunk that must not feel it, or must feel its opposite.

    source ──> trunk ──> features ──> classifier ──> label_loss
    both   ──> trunk ──> features ──‖──> branch ──> branch_loss      ‖ stop.features: 0 detach, +1 none, -l reverse:l

One gate, three methods. Closed, the branch is a probe (Alain & Bengio 2016, arXiv:1610.01644): it tells what the
trunk knows, here whether an image is of the source domain or of the target, and the trunk trains as if it were not
there. Open, it is an auxiliary task. Reversed, it is domain-adversarial training (DANN; Ganin et al. 2016,
arXiv:1505.07818, eq. 13-15): the branch learns to tell the domains apart and the trunk learns to make them alike.

A gradient is not the only way from a branch to its trunk: a clip by the norm of all gradients scales the trunk's step
by what the branch's gradient is (stop.clip=global). The trunk has no BatchNorm, whose statistics would be another way.

recipe.head says what the branch answers: the domain; whether the classifier is right (a confidence head); what comes
after the label (as the further heads of Medusa, Cai et al. 2024, arXiv:2401.10774, or of multi-token prediction); or
features of what comes after, which the classifier reads (as EAGLE's draft, Li et al. 2024, arXiv:2401.15077). There

    features ‖ ──> branch ──> drafted features ──> classifier (‖) ──> branch_loss      ‖ stop.classifier: its weights

    python train.py recipe=branch                               # a probe: the trunk bit for bit as without it
    python train.py recipe=branch stop.features=reverse:0.3     # DANN: better on the target domain
    python train.py recipe=branch stop.clip=global              # broken: the probe moves the trunk

Figures of all arms, three seeds each: docs/recipes/branch.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import lightning as L
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.labels import check_labels
from recipes.parts.networks import mlp
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, clip_gradients, counted, log_is_due

PAPER = "Alain & Bengio 2016; Ganin 2016"
# The first choice is the probe's, and the default.
BOUNDARIES = {
    "features": ["detach", "no_grad", "freeze", "data", "none", "scale", "reverse"],
    "classifier": ["freeze", "none"],
}
SWITCHES = {"clip": ["group", "global"]}  # global: by one norm, the branch's gradient in it
# Chance is .1; a classifier that has learnt the source domain names .9 of it right.
METRICS = {
    "target_accuracy": {"goal": "max", "margin": 0.02},
    "source_accuracy": {"goal": "max", "margin": 0.02, "broken_below": 0.5},
}
WITHOUT = {
    "features": "the probe trains what it measures",
    "classifier": "the classifier that reads a draft learns to read what is not there",
    "clip": "global, the probe moves the trunk, though no gradient flows",
}
NEEDS = {"stop.classifier": ["recipe.head=draft"]}
SMALL = ["data.batch_size=16"]
FLOW = FlowContract(
    {
        "label_loss": {"trunk": "open", "classifier": "open", "branch": "blocked"},
        "branch_loss": {"branch": "open", "trunk": "blocked", "classifier": "blocked", "stop.features": "blocked"},
    }
)


def convolutional(shape: Sequence[int], width: int, features: int) -> nn.Sequential:
    """Images (B, C, H, W) to features (B, features); no BatchNorm."""
    pixels = math.ceil(shape[1] / 4) * math.ceil(shape[2] / 4)
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * pixels, features),
        nn.ReLU(),
    )


class Branch(L.LightningModule):
    """A classifier of the source domain, and a branch that tells the domains apart, on one trunk.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameters to an optimiser.
        classes: outputs of the classifier.
        width: channels of the trunk's first layer.
        features: of the trunk.
        hidden: units of each head's hidden layer.
        head: what the branch tells: ``domain``; ``confidence``: whether the classifier names a source image right;
            ``ahead``: the label after its own, counting on; or ``draft``: features that the classifier takes for it.
        domain_weight: of the branch's loss; 0 leaves the branch out.
        max_norm: gradients are clipped to this norm: those of trunk and classifier, and those of the branch.
    """

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        width: PositiveInt = 16,
        features: PositiveInt = 64,
        hidden: PositiveInt = 100,
        head: Literal["domain", "confidence", "ahead", "draft"] = "domain",
        domain_weight: NonNegativeFloat = 1.0,
        max_norm: PositiveFloat = 5.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.trunk = convolutional(shape, width, features)
        self.classifier = mlp(features, hidden, classes)
        self.branch = mlp(features, hidden, {"ahead": classes, "draft": features}.get(head, 1))
        self.classes, self.head, self.domain_weight, self.max_norm = classes, head, domain_weight, max_norm
        self.optimizer = optimizer
        self.FLOW = self.contract()

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"trunk": self.trunk, "classifier": self.classifier, "branch": self.branch}

    def contract(self) -> FlowContract:
        """FLOW, with the boundaries that this head's loss crosses."""
        if not self.domain_weight:
            return FlowContract({"label_loss": FLOW["label_loss"]})
        draft = {"stop.classifier": "blocked"} if self.head == "draft" else {}
        return FlowContract({**FLOW, "branch_loss": {**FLOW["branch_loss"], **draft}})

    # ---- the two losses: what this recipe is about

    def label_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The classifier names the source images (B, C, H, W)."""
        source, labels, _ = batch
        return F.cross_entropy(self.classifier(self.trunk(source)), labels)

    def branch_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The branch tells source images (0) from target images (1), as many of each; or what ``head`` says."""
        source, labels, target = batch
        images = torch.cat([source, target]) if self.head == "domain" else source
        features = self.stop.features(self.trunk, images)  # the gate: closed, open or reversed
        answers = self.answers(features)
        if self.head in ("ahead", "draft"):
            return F.cross_entropy(answers, self.following(labels))
        if self.head == "confidence":
            return F.binary_cross_entropy_with_logits(answers.squeeze(1), self.right(features, labels))
        domains = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).to(source.device)
        return F.binary_cross_entropy_with_logits(answers.squeeze(1), domains)

    def answers(self, features: Tensor) -> Tensor:
        """What the branch says of features: one logit (B, 1), or a class's (B, classes)."""
        said = self.branch(features)
        if self.head == "draft":
            return self.stop.classifier(self.classifier, said)  # through it, not to its weights
        return said

    def following(self, labels: Tensor) -> Tensor:
        return (labels + 1) % self.classes

    @torch.no_grad()
    def right(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B,) 1 where the classifier names the image of these features right."""
        return (self.classifier(features).argmax(1) == labels).float()

    # ---- the step

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = counted(self)
        optimizer.zero_grad()
        terms = {}
        for name, loss, weight in (("label", self.label_loss, 1.0), ("branch", self.branch_loss, self.domain_weight)):
            if weight:
                value = weight * loss(batch)
                backward(self, value, f"{name}_loss")
                terms[f"loss/{name}"] = value.detach()
        terms |= self.clip(optimizer)
        optimizer.step()
        if log_is_due(self):
            self.log_dict(terms, prog_bar=True)

    def clip(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Scale the gradients down to norm ``max_norm``; their norms before."""
        if self.stop.clip == "global":
            return {"health/norm": clip_gradients(self, optimizer, self.max_norm)}
        return {
            "health/norm": clip_gradients(self, optimizer, self.max_norm, group=0),
            "health/branch_norm": clip_gradients(self, optimizer, self.max_norm, group=1),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        main = [*self.trunk.parameters(), *self.classifier.parameters()]
        return self.optimizer([{"params": main}, {"params": self.branch.parameters()}])

    # ---- how well it does

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse, before a run, a batch without labels and both domains."""
        check_labels(data, self.classes, "both")

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.trunk(images))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Target images and labels, source images and labels."""
        target, target_labels, source, source_labels = batch
        for name, images, labels, domain in (
            ("target", target, target_labels, True),
            ("source", source, source_labels, False),
        ):
            features = self.trunk(images)
            right = self.classifier(features).argmax(1) == labels
            self.log(f"{name}_accuracy", right.float().mean(), prog_bar=True)
            self.log(f"health/{name}_told", self.told(features, labels, domain).float().mean())

    def told(self, features: Tensor, labels: Tensor, domain: bool) -> Tensor:
        """(B,) Whether the branch's answer is right."""
        answers = self.answers(features)
        if self.head in ("ahead", "draft"):
            return answers.argmax(1) == self.following(labels)
        wanted = self.right(features, labels) > 0 if self.head == "confidence" else domain
        return (answers.squeeze(1) > 0) == wanted

    test_step = validation_step
