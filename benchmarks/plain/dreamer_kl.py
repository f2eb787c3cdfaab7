"""Dreamer's KL balance on one number, as a loop in plain PyTorch: Hafner et al. 2021, 2023.

    python benchmarks/plain/dreamer_kl.py        # 110 steps: the posterior keeps 1 / (1 + .1 * .64) = .9398 of x

The posterior's mean is a x, the prior's b h; x and h are signs whose correlation is .6.
"""

import argparse
import time

import torch

DYN, REP = 0.5, 0.1


def train(steps: int = 110, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    x = torch.tensor([1.0] * 10 + [-1.0] * 10, dtype=torch.float64)
    h = torch.tensor([1.0] * 8 + [-1.0] * 2 + [-1.0] * 8 + [1.0] * 2, dtype=torch.float64)
    a, b = (torch.rand((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.5)
    started = time.perf_counter()

    for _ in range(steps):
        posterior, prior = a * x, b * h
        dyn = (posterior.detach() - prior).square().mean() / 2  # the cut: the prior comes to the posterior
        rep = (posterior - prior.detach()).square().mean() / 2  # the cut: and the posterior to the prior, a little
        loss = (x - posterior).square().mean() / 2 + DYN * dyn + REP * rep
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"posterior": a.item(), "prior": b.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
