"""SimSiam (Chen & He 2021, arXiv:2011.10566) on scikit-learn's digits, as a loop in plain PyTorch.

    python benchmarks/plain/simsiam.py        # 1,000 batches of 128: spread .87, kNN .74 of distorted digits

Two views of an image must agree, and the one that is agreed with must stay put, or all images end as one.
"""

import argparse
import math
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, HIDDEN, OUTPUTS, PREDICTOR = 128, 256, 64, 32
TURN, SHIFT, SCALE = 0.5, 0.25, 0.2  # radians; of half the image; of 1


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def warped(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (N, 1, 8, 8), each turned, shifted and scaled at random."""
    draws = 2 * torch.rand(len(images), 4, generator=generator) - 1
    angle, factor = TURN * draws[:, 0], 1 + SCALE * draws[:, 1]
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    maps = torch.cat([factor[:, None, None] * rotation, SHIFT * draws[:, 2:, None]], 2)
    return F.grid_sample(images + 1, F.affine_grid(maps, list(images.shape), False), align_corners=False) - 1


def batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, track_running_stats=False)


def train(steps: int = 1000, seed: int = 0) -> dict[str, float]:
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 8 - 1
    labels = torch.tensor(digits)[order]
    kept = int(0.8 * len(images))  # to train on

    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
    projector = nn.Linear(HIDDEN, HIDDEN), batch_norm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS)
    encoder = nn.Sequential(backbone, *projector)
    predictor = nn.Sequential(
        nn.Linear(OUTPUTS, PREDICTOR), batch_norm(PREDICTOR), nn.ReLU(), nn.Linear(PREDICTOR, OUTPUTS)
    )
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=1e-4)
    started = time.perf_counter()

    for here in batches(kept, BATCH, steps):
        z = encoder(torch.cat([warped(images[here]), warped(images[here])]))
        p = predictor(z)
        target = z.detach()  # the cut: p moves to z, which stays put
        loss = -F.cosine_similarity(p, target.roll(BATCH, 0)).mean()  # each view against the other one
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        asked = backbone(warped(images[kept:], torch.Generator().manual_seed(0)))
        similar = F.normalize(asked, dim=1) @ F.normalize(backbone(images[:kept]), dim=1).T
        named = labels[:kept][similar.topk(5).indices].mode(1).values
        directions = F.normalize(encoder(images[kept:]), dim=1)
    found = {
        "knn_accuracy": (named == labels[kept:]).float().mean().item(),
        "spread": directions.std(0).mean().item() * math.sqrt(OUTPUTS),
    }
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
