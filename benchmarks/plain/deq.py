"""A deep equilibrium classifier of digits, its last step learnt through, as a loop in plain PyTorch.

    python benchmarks/plain/deq.py        # 600 batches of 128: .97 of the held-out digits

Bai et al. 2019, arXiv:1909.01377; Jacobian-free backpropagation: Fung et al. 2022, arXiv:2103.12803.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, CONTRACTION, SOLVER_STEPS, BATCH = 64, 0.9, 60, 128


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def train(steps: int = 600, seed: int = 0) -> dict[str, float]:
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(pixels).float()[order] / 8 - 1, torch.tensor(classes)[order]
    kept = int(0.8 * len(labels))  # to train on

    torch.manual_seed(seed)
    drive, recurrent, head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 10)
    networks = nn.ModuleList([drive, recurrent, head])
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3, fused=True)

    def fixed_point(x: Tensor) -> Tensor:
        rows = recurrent.weight.abs().sum(1, keepdim=True)
        weight = recurrent.weight * (CONTRACTION / rows).clamp(max=1)
        fixed, z = drive(x), torch.zeros(len(x), WIDTH)
        with torch.no_grad():  # the cut: how the fixed point was found is forgotten
            for _ in range(SOLVER_STEPS - 1):
                z = torch.tanh(torch.addmm(fixed, z, weight.T))
        return torch.tanh(torch.addmm(fixed, z, weight.T))

    started = time.perf_counter()
    for here in batches(kept, BATCH, steps):
        loss = F.cross_entropy(head(fixed_point(images[here])), labels[here])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        scores = head(fixed_point(images[kept:]))
        found = {
            "accuracy": (scores.argmax(1) == labels[kept:]).float().mean().item(),
            "loss": F.cross_entropy(scores, labels[kept:]).item(),
        }
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
