"""Linear probing of a perfect linear backbone, in plain PyTorch: Kumar et al. 2022, arXiv:2202.10054, section 3.

    python benchmarks/plain/finetune_linear.py        # 2,000 full batches: no error, in distribution or out of it

Labels are y = w B x. The backbone is B, the head begins at random, and the training inputs fill 30 of 100 dimensions.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIMENSIONS, FEATURES, SUBSPACE, SAMPLES = 100, 20, 30, 64


def rows(n: int) -> Tensor:
    """(n, D), orthonormal."""
    return torch.linalg.qr(torch.randn(DIMENSIONS, n)).Q.T


def train(steps: int = 2000, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    true_backbone, true_head = rows(FEATURES), F.normalize(torch.randn(1, FEATURES))
    inside = rows(SUBSPACE)
    inputs, held_out = torch.randn(SAMPLES, SUBSPACE) @ inside, torch.randn(1000, SUBSPACE) @ inside
    elsewhere = torch.randn(1000, DIMENSIONS)

    def labels(x: Tensor) -> Tensor:
        return x @ true_backbone.T @ true_head.T

    head = nn.Linear(FEATURES, 1, bias=False)
    backbone = nn.Linear(DIMENSIONS, FEATURES, bias=False)
    backbone.weight.data.copy_(true_backbone)
    optimizer = torch.optim.SGD([*head.parameters(), *backbone.parameters()], lr=0.1)
    targets = labels(inputs)
    started = time.perf_counter()

    for _ in range(steps):
        features = backbone(inputs).detach()  # the cut: the loss teaches the head, not the backbone
        loss = F.mse_loss(head(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        found = {
            "error": F.mse_loss(head(backbone(held_out)), labels(held_out)).item(),
            "ood_error": F.mse_loss(head(backbone(elsewhere)), labels(elsewhere)).item(),
            "weights_moved": (backbone.weight - true_backbone).abs().max().item(),
        }
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
