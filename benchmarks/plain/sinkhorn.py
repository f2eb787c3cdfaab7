"""Points that move to others down an entropic transport cost, in plain PyTorch: Cuturi 2013, arXiv:1306.0895.

    python benchmarks/plain/sinkhorn.py        # 30 steps of 500 iterations

At its optimum the plan is a constant: no iteration is kept for backward.
"""

import argparse
import math
import time

import torch

POINTS, REG, ITERATIONS = 12, 0.1, 500


def train(steps: int = 30, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    places = torch.nn.Parameter(torch.randn(POINTS, 2, dtype=torch.float64))
    targets = torch.randn(POINTS, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD([places], lr=1.0)
    count = math.log(POINTS)
    started = time.perf_counter()

    for _ in range(steps):
        cost = (places[:, None] - targets).square().sum(2) / 2
        with torch.no_grad():  # the cut: the envelope theorem
            f = g = torch.zeros(POINTS, dtype=torch.float64)
            for _ in range(ITERATIONS):
                f = -REG * ((g - cost) / REG - count).logsumexp(1)
                g = -REG * ((f[:, None] - cost) / REG - count).logsumexp(0)
            log_plan = (f[:, None] + g - cost) / REG - 2 * count
        sharp = (log_plan.exp() * cost).sum()
        loss = sharp + REG * (log_plan.exp() * (log_plan + 2 * count)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"transport_cost": sharp.item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
