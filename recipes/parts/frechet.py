"""Frechet distance between images, in the features of a small classifier of the same data.

The distance of Heusel et al. (2017, arXiv:1706.08500) with the Inception network replaced by one that fits 8x8 to
32x32 images: two 3x3 convolutions (32 and 64 channels, the second of stride 2), a linear layer to 64 features, ReLU
after each, and a linear layer to the classes. It is trained once, on the training part of the data (Adam, one cycle up
to 2e-3, batch 64, shifts of one pixel, fixed seed), and kept in the cache under the hash of this specification and of
the data. It names .989 of the held-out digits and .973 of the held-out mnist5k right.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

from recipes.parts.cache import cached
from recipes.parts.images import Images

SPECIFICATION = "conv32-conv64/2-linear64-linear; adam, one cycle to 2e-3; batch 64; 30 epochs, 10 from 2,000 images on"
NUM_FEATURES = 64


class Features(nn.Sequential):
    """Images (B, C, H, W) to (B, 64)."""

    num_features = NUM_FEATURES  # torchmetrics asks


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to class scores (B, K); ``features`` gives the penultimate layer (B, 64)."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.features = Features(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * ((height + 1) // 2) * ((width + 1) // 2), NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` (N, C, H, W) that are given their label (N,)."""
    with torch.no_grad():
        return (classifier(images).argmax(1) == labels).double().mean().item()


def train_classifier(images: Tensor, labels: Tensor) -> Classifier:
    """The classifier of this module's specification."""
    epochs = 30 if len(images) < 2000 else 10
    torch.manual_seed(0)
    with torch.enable_grad():
        classifier = Classifier(images.shape[1:], int(labels.max()) + 1)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 2e-3, total_steps=epochs * math.ceil(len(images) / 64)
        )
        for _ in range(epochs):
            for here in torch.randperm(len(images)).split(64):
                shifted = images[here].roll(torch.randint(-1, 2, (2,)).tolist(), dims=(2, 3))
                optimizer.zero_grad()
                F.cross_entropy(classifier(shifted), labels[here]).backward()
                optimizer.step()
                schedule.step()
    return classifier


def key_of(*data: Tensor) -> str:
    """Of the specification and these very tensors."""
    return hashlib.sha256(SPECIFICATION.encode() + b"".join(each.numpy().tobytes() for each in data)).hexdigest()[:16]


def cached_classifier(images: Tensor, labels: Tensor, cache: Path) -> Classifier:
    """The trained classifier, from the cache where it has been trained before on these very images.

    Leaves the global random state as it found it, so that a run does not depend on what is in the cache.
    """
    key = key_of(images, labels)
    with torch.random.fork_rng(devices=[]):
        weights = cached(cache / f"frechet-{key}.pt", lambda: train_classifier(images, labels).state_dict())
        classifier = Classifier(images.shape[1:], int(labels.max()) + 1)
    classifier.load_state_dict(weights)
    return classifier.requires_grad_(False).eval()


class FrechetDistance:
    """Frechet distance of sampled images to a fixed set of real ones.

    Args:
        classifier: whose penultimate features are compared; kept out of any module that holds this object, so that
            it is no part of a checkpoint or of the weights.
        reals: (N, C, H, W) in [-1, 1].
    """

    def __init__(self, classifier: Classifier, reals: Tensor) -> None:
        self.metric = FrechetInceptionDistance(classifier.features, reset_real_features=False)
        self.metric.update(reals, real=True)

    def __call__(self, images: Tensor) -> float:
        """The distance of ``images`` (M, C, H, W) to the real ones; 0 where the features' first two moments agree."""
        self.metric.reset()
        self.metric.update(images.cpu().float(), real=False)  # from half precision too
        return self.metric.compute().item()


KEPT: dict[str, tuple[FrechetDistance, float]] = {}  # of the last real images


class SampleQuality:
    """The Frechet distance of samples, beside the two figures it is to be read against.

    Calling it with images (M, C, H, W) gives ``frechet``, and ``frechet_floor`` and ``frechet_start`` where known: one
    half of the real images against the other, and the samples of the untrained recipe.

    Args:
        data: whose first 2,000 images (of all, held-out ones too) are the real ones.
        sample: from a number to as many samples, before training; None where that is past.
    """

    def __init__(self, data: Images, sample: Callable[[int], Tensor] | None) -> None:
        self.distance, floor = self.of_reals(data)
        self.yardsticks = {"frechet_floor": floor}
        if sample is not None:
            self.yardsticks["frechet_start"] = self.distance(sample(self.num_reals))

    def of_reals(self, data: Images) -> tuple[FrechetDistance, float]:
        """The distance to the real images, and between their halves: once for all runs of a process on these images."""
        reals = torch.cat([data.images, data.held_out_images])[:2000]
        self.num_reals = len(reals)
        key = key_of(data.images, data.labels, reals)
        if key not in KEPT:
            classifier = cached_classifier(data.images, data.labels, data.cache)
            halves = FrechetDistance(classifier, reals[::2])
            KEPT.clear()
            KEPT[key] = FrechetDistance(classifier, reals), halves(reals[1::2])
        return KEPT[key]

    def __call__(self, images: Tensor) -> dict[str, float]:
        return {"frechet": self.distance(images)} | self.yardsticks


def sample_quality(data: object, sample: Callable[[int], Tensor] | None) -> SampleQuality | None:
    """:class:`SampleQuality` where the data are images, else None."""
    return SampleQuality(data, sample) if isinstance(data, Images) else None
