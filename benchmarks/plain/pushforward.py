"""A linear solver trained on its own output, in plain PyTorch: the pushforward trick of arXiv:2202.03376.

    python benchmarks/plain/pushforward.py        # 200 steps: a = .6287

A process of variance 1 with correlations .5 and .6 at lags 1 and 2; all expectations in closed form.
"""

import argparse
import time

import torch

RHO_1, RHO_2 = 0.5, 0.6


def train(steps: int = 200, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    a = torch.nn.Parameter(torch.rand((), dtype=torch.float64))
    optimizer = torch.optim.SGD([a], lr=0.2)
    started = time.perf_counter()

    for _ in range(steps):
        one = 1 - 2 * a * RHO_1 + a.square()
        pushed = a * a.detach()  # the cut: the state after one step is an input like any other
        two = 1 - 2 * pushed * RHO_2 + pushed.square()
        optimizer.zero_grad()
        ((one + two) / 2).backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"a": a.item(), "two_step_error": two.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
