r"""Fine-tuning: the loss of the new task must not reach the pretrained backbone, or not before its head is in place.

    images ──> backbone ──> features ──‖──> head ──> target_loss      ‖ stop.features: the head learns, the backbone not
               (BatchNorm's statistics move on every forward pass in train mode, whatever is cut: stop.batchnorm)

Linear probing (LP) trains the head alone, full fine-tuning (FT) both. Kumar et al. 2022, arXiv:2202.10054: FT from
a random head distorts pretrained features along the training inputs alone, and does worse out of distribution; LP
first, then FT (LP-FT) does not. Gradual unfreezing, from the last stage down: Howard & Ruder 2018,
arXiv:1801.06146, section 3.3. Here the cut moves down the stages instead of flags being flipped, and where it stands
follows from the step: a resumed run finds it there, and so does every rank.

A cut stops gradients and nothing else. In train mode BatchNorm still takes in the new images; and gradients of zero,
which are not None, still let weight decay and momentum move a weight (stop.features=scale:0).

    python train.py recipe=finetune                                 # right: old task .971 -> .971
    python train.py recipe=finetune stop.batchnorm=train            # broken: .971 -> .2

Figures of all arms, three seeds each: docs/recipes/finetune.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.backbones import backbone as build_backbone
from recipes.parts.labels import check_labels
from recipes.parts.pretrained import kept_features
from stopgrad import FlowContract, Stops
from stopgrad.lightning.manual import backward, counted, data_of, log_is_due, raw

PAPER = "Kumar 2022; Howard & Ruder 2018"
# The first choice is linear probing, and the default.
BOUNDARIES = {"features": ["detach", "no_grad", "freeze", "freeze_params", "cached", "none", "scale"]}
SWITCHES = {
    "batchnorm": ["eval", "train"],  # train: batch statistics, and the running ones follow the new images
    "unfreeze": ["never", "at_once", "gradual"],  # at_once: LP-FT; gradual: stage by stage from the last one down
}
# old_task: .971 before; a frozen backbone keeps it, and half of it is gone where its features are.
METRICS = {
    "accuracy": {"goal": "max", "margin": 0.02},
    "old_task": {"goal": "max", "margin": 0.02, "broken_below": 0.5},
}
WITHOUT = {
    "features": "features are distorted before the head is in place",
    "batchnorm": "train, the old task is lost, whatever is cut",
    "unfreeze": "at once from a random head, features that were perfect are wrong elsewhere",
}
REFUSES = {"compile=update": "where it cuts depends on the step, so that each would be compiled anew"}
EXEMPT = {
    "ranks stop.batchnorm=train": "BatchNorm normalises by the rank's own half of the batch",
    "ranks stop.features=cached": "what is kept is in float32, in which the comparison would be inexact",
}
SMALL = ["recipe.pretrain_steps=5", "data.batch_size=16"]
FLOW = FlowContract({"target_loss": {"head": "open", "backbone": "blocked", "stop.features": "blocked"}})
NOTHING = nn.Identity()


def jittered(images: Tensor) -> Tensor:
    """The batch (B, C, H, W) rolled by up to one pixel."""
    return images.roll(torch.randint(-1, 2, (2,)).tolist(), dims=(2, 3))


class FineTune(L.LightningModule):
    """A pretrained backbone and a new head.

    Args:
        stop: the chosen strategies and switches.
        shape: (C, H, W) of an image.
        optimizer: from parameter groups to an optimiser; it holds the backbone too, unless its features are cached.
        classes: outputs of the head.
        backbone: ``resnet`` (with BatchNorm), ``torchvision/NAME`` or ``timm/NAME``.
        width: channels of the ResNet's first stage.
        weights: of torchvision's or timm's backbone: null, or the name of those to download.
        pretrain_steps: batches on the source task, once; the result is cached.
        unfreeze_after: batches until the whole backbone is unfrozen, or its next stage.
        backbone_lr: learning rate of the backbone; null for the head's.
        augment: shift each batch by up to one pixel.
        feature_cache: file for the features of ``stop.features=cached``; null for one in the data's cache.
        updates: optimiser steps a batch, which is split among them: with ``cached`` a step takes less than the loop
            around it.
    """

    FLOW = FLOW

    def __init__(
        self,
        *,
        stop: Mapping[str, str],
        shape: Sequence[PositiveInt],
        optimizer: Callable[..., torch.optim.Optimizer],
        classes: PositiveInt = 10,
        backbone: str = "resnet",
        width: PositiveInt = 8,
        weights: str | None = None,
        pretrain_steps: NonNegativeInt = 300,
        unfreeze_after: PositiveInt = 200,
        backbone_lr: NonNegativeFloat | None = None,
        augment: bool = False,
        feature_cache: str | None = None,
        updates: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stop = Stops(stop, BOUNDARIES, SWITCHES)
        self.strategy = self.stop.features.spelled
        self.classes, self.augment, self.feature_cache = classes, augment, feature_cache
        self.optimizer, self.backbone_lr = optimizer, backbone_lr
        self.pretrain_steps, self.unfreeze_after, self.updates = pretrain_steps, unfreeze_after, updates
        self.check_choices()
        self.source = (backbone, shape, width, weights)
        network: Any = self.source_network()
        self.backbone, self.old_head = network.backbone, network.head.requires_grad_(False)
        self.head = nn.Linear(self.old_head.in_features, classes)
        self.cached = False  # whether batches hold features
        self.freeze_below_the_cut()
        self.train()

    def check_choices(self) -> None:
        """Refuse choices that contradict each other."""
        stop = self.stop
        if self.strategy == "none" and stop.unfreeze != "never":
            raise ValueError(f"stop.unfreeze={stop.unfreeze}: with stop.features=none nothing is frozen; choose never")
        if self.strategy != "cached":
            return
        for key, value, wanted in (
            ("recipe.augment", self.augment, False),
            ("stop.batchnorm", stop.batchnorm, "eval"),
            ("stop.unfreeze", stop.unfreeze, "never"),
        ):
            if value != wanted:
                raise ValueError(
                    f"{key}={value}: the features would change from step to step, and stop.features=cached computes "
                    f"them once; choose {key}={str(wanted).lower()}, or stop.features=no_grad"
                )

    def parameter_groups(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    # ---- the loss, and where the cut stands: what this recipe is about

    def target_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Of images (B, C, H, W), or their cached features (B, F), and labels (B,)."""
        inputs, labels = batch
        if self.augment:
            inputs = jittered(inputs)
        below, above = self.halves()
        features = self.stop.features(below, inputs)  # the cut: this loss must not teach what is below
        return F.cross_entropy(self.head(above(features)), labels)

    @property
    def cut(self) -> int:
        """The number of stages below the cut, from the step alone."""
        whole, unfrozen = len(self.backbone), self.global_step // self.unfreeze_after
        return {"never": whole, "at_once": 0 if unfrozen else whole, "gradual": max(0, whole - unfrozen)}[
            self.stop.unfreeze
        ]

    def halves(self) -> tuple[nn.Module, nn.Module]:
        """The backbone below the cut and above it; a whole one as it is, so that a compiled one is used."""
        if self.cached:
            return NOTHING, NOTHING
        cut = self.cut
        if cut == len(self.backbone):
            return self.backbone, NOTHING
        if cut == 0:
            return NOTHING, self.backbone
        return self.backbone[:cut], self.backbone[cut:]

    def freeze_below_the_cut(self) -> None:
        """``freeze_params``: flags on the parameters themselves."""
        if self.strategy == "freeze_params":
            for number, stage in enumerate(self.backbone):
                stage.requires_grad_(number >= self.cut)

    def train(self, mode: bool = True) -> FineTune:
        super().train(mode)
        if self.stop.batchnorm == "eval":
            self.backbone.eval()  # again after every train(), which puts all children back
        return self

    # ---- the steps

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.freeze_below_the_cut()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizers = [*[raw(self)] * (self.updates - 1), counted(self)]  # a step is a batch
        parts = zip(*(tensor.tensor_split(self.updates) for tensor in batch), strict=True)
        for optimizer, part in zip(optimizers, parts, strict=True):
            loss = self.target_loss(part)
            optimizer.zero_grad()  # to None: a gradient of zeros would let weight decay move what is frozen
            backward(self, loss, "target_loss")
            optimizer.step()
        if log_is_due(self):
            self.log("loss/target", loss.detach(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        backbone: dict[str, Any] = {"params": self.backbone.parameters()}
        if self.backbone_lr is not None:
            backbone["lr"] = self.backbone_lr
        head = {"params": self.head.parameters()}
        return self.optimizer([head] if self.strategy == "cached" else [head, backbone])  # it never sees an image

    # ---- the pretrained weights, and the cached features

    def source_network(self) -> nn.Sequential:
        """Backbone and head of the source task before pretraining; the same for every seed, and no draw from it."""
        name, shape, width, weights = self.source
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            backbone, features = build_backbone(name, shape, width, weights)
            head = nn.Linear(features, self.classes)
        return nn.Sequential(OrderedDict(backbone=backbone, head=head))

    def check_data(self, data: Any) -> None:
        """Refuse, before a run, labels that the head has no output for, and features made by something else."""
        size = getattr(data, "batch_size", self.updates)
        if size < self.updates:
            raise ValueError(f"data.batch_size={size}: fewer than recipe.updates={self.updates} steps, on each rank")
        check_labels(data, self.classes, "target", "source")
        if self.strategy == "cached" and self.feature_cache is not None and Path(self.feature_cache).exists():
            self.old_network().load_state_dict(data.pretrain(self.source_network(), self.pretrain_steps))
            self.compute_features(data)

    def old_network(self) -> nn.ModuleDict:
        """The two that answer the source task."""
        return nn.ModuleDict({"backbone": self.backbone, "head": self.old_head})

    def prepare_data(self) -> None:
        data = data_of(self)
        data.setup("fit")
        data.pretrain(self.source_network(), self.pretrain_steps)  # once, on one process

    def setup(self, stage: str) -> None:
        self.origin = data_of(self).pretrain(self.source_network(), self.pretrain_steps)
        if stage == "fit":
            self.old_network().load_state_dict(self.origin)

    def compute_features(self, data: Any) -> Tensor:
        """(N, F) of all training inputs, from the cache if they are there."""
        file = None if self.feature_cache is None else Path(self.feature_cache)
        return kept_features(self.backbone, data.train_inputs, file, Path(data.cache))

    def on_fit_start(self) -> None:
        if self.strategy == "cached":
            data = data_of(self)
            data.train_inputs, self.cached = self.compute_features(data), True

    def on_fit_end(self) -> None:
        self.cached = False

    # ---- how well it does, what it has forgotten, and what has moved

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))

    def moved(self, buffers: bool) -> Tensor:
        """The largest absolute change of the backbone's weights, or of its BatchNorm statistics, since pretraining."""
        kind = dict(self.backbone.named_buffers() if buffers else self.backbone.named_parameters())
        changes = [
            (now.detach() - self.origin[f"backbone.{name}"].to(now.device)).abs().max()
            for name, now in kind.items()
            if now.is_floating_point()
        ]
        return torch.stack(changes).max() if changes else torch.zeros(())

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Images and labels of the new task, then of the old one."""
        images, labels, old_images, old_labels = batch
        old_scores = self.old_head(self.backbone(old_images))
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)
        self.log("old_task", (old_scores.argmax(1) == old_labels).float().mean(), prog_bar=True)
        self.log("health/statistics_moved", self.moved(buffers=True))
        self.log("health/weights_moved", self.moved(buffers=False))

    test_step = validation_step
