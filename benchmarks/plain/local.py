"""Local learning on digits, as a loop in plain PyTorch: Belilovsky, Eickenberg & Oyallon 2019, arXiv:1812.11446.

    python benchmarks/plain/local.py        # 500 batches of 128: .97 of the held-out digits

Four blocks, each with a head and a loss of its own; a block's backward comes before the next block's forward.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

DEPTH, WIDTH, BATCH = 4, 128, 128


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def train(steps: int = 500, seed: int = 0) -> dict[str, float]:
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(pixels).float()[order] / 8 - 1, torch.tensor(classes)[order]
    kept = int(0.8 * len(labels))  # to train on

    torch.manual_seed(seed)
    sizes = [64, *[WIDTH] * (DEPTH - 1)]
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU()) for size in sizes)
    heads = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in sizes)
    optimizer = torch.optim.Adam([*blocks.parameters(), *heads.parameters()], lr=1e-3, fused=True)
    started = time.perf_counter()

    for here in batches(kept, BATCH, steps):
        features = images[here]
        optimizer.zero_grad()
        for block, head in zip(blocks, heads, strict=True):
            features = block(features)
            F.cross_entropy(head(features), labels[here]).backward()  # at once: this block's graph is gone
            features = features.detach()  # the cut: what follows must not teach this block
        optimizer.step()

    seconds = time.perf_counter() - started
    found = {}
    with torch.no_grad():
        features = images[kept:]
        for number, (block, head) in enumerate(zip(blocks, heads, strict=True), start=1):
            features = block(features)
            found[f"accuracy_{number}"] = (head(features).argmax(1) == labels[kept:]).float().mean().item()
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
