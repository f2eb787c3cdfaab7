"""Two tasks, each over its own value, as a loop in plain PyTorch: the adaptive weights of VQGAN and others.

    python benchmarks/plain/weighting.py        # 400 steps: the parameter comes to rest half way, whatever the scale

One loss is a thousand times the other; divided by itself, without a gradient, each counts by its logarithm.
"""

import argparse
import time

import torch

SCALE = 1000


def train(steps: int = 400, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    started = time.perf_counter()

    for _ in range(steps):
        losses = torch.stack([(theta - 1).square() + 4, SCALE * ((theta + 1).square() + 4)])
        loss = (losses / losses.detach()).sum()  # the cut: it weighs, and is not made small
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"theta": theta.item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
