"""ReinMax on a quadratic of four categories, as a loop in plain PyTorch: Liu et al. 2023, arXiv:2304.08612.

    python benchmarks/plain/straight_through.py        # 300 steps: the best category is found

Every category counts by its probability, in the place of samples.
"""

import argparse
import time

import torch

CATEGORIES = 4


def train(steps: int = 300, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    theta = torch.randn(CATEGORIES, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(CATEGORIES, CATEGORIES, dtype=torch.float64)
    target = torch.randn(CATEGORIES, dtype=torch.float64)
    every = torch.eye(CATEGORIES, dtype=torch.float64)

    def f(y: torch.Tensor) -> torch.Tensor:
        return ((y - target) @ matrix * (y - target)).sum(1)

    optimizer = torch.optim.Adam([theta], lr=0.1)
    started = time.perf_counter()

    for _ in range(steps):
        p = theta.softmax(0)
        q = (every + p) / 2
        q = (theta + (q.log() - theta).detach()).softmax(1)  # the cut: q again, as a softmax of theta
        v = 2 * q - p / 2
        y = every + v - v.detach()  # the cut: the choice, with the gradient of v
        loss = (p.detach() * f(y)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        regret = (theta.softmax(0) * f(every)).sum() - f(every).min()
    return {"regret": regret.item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
