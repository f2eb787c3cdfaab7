"""An estimate that four steps improve, each taking the one before for a constant, in plain PyTorch: as RAFT does.

    python benchmarks/plain/refine.py        # 400 steps: w = .3515, error variance .2378

Teed & Deng 2020, arXiv:2003.12039; the toy is a Kalman filter of one number.
"""

import argparse
import time

import torch

ITERATIONS = 4


def train(steps: int = 400, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    weight = torch.nn.Parameter(0.1 + 0.8 * torch.rand((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    started = time.perf_counter()

    for _ in range(steps):
        variance, loss = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for _ in range(ITERATIONS):
            variance = (1 - weight).square() * variance.detach() + weight.square()  # the cut: between two steps
            loss = loss + variance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"weight": weight.item(), "error_variance": variance.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
