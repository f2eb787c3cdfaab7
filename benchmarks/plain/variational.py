"""Sticking the landing, as a loop in plain PyTorch: Roeder, Wu & Duvenaud 2017, arXiv:1703.09194.

    python benchmarks/plain/variational.py        # 4,000 steps: KL to the exact posterior 1e-16

A Gaussian with a full covariance comes to the posterior of 4 weights, from 40 patients of scikit-learn's diabetes data.
"""

import argparse
import math
import time

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.linalg import solve_triangular

PATIENTS, FEATURES, VARIANCE, DRAWS = 40, 4, 0.5, 8


def train(steps: int = 4000, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    x, y = (torch.from_numpy(part) for part in load_diabetes(return_X_y=True))
    x = ((x - x.mean(0)) / x.std(0))[:PATIENTS, :FEATURES]
    y = ((y - y.mean()) / y.std())[:PATIENTS]

    mu = nn.Parameter(torch.zeros(FEATURES).double())
    log_diagonal = nn.Parameter(torch.zeros(FEATURES).double())
    below = nn.Parameter(torch.zeros(FEATURES, FEATURES).double())
    optimizer = torch.optim.Adam([mu, log_diagonal, below], lr=0.02)
    started = time.perf_counter()

    for _ in range(steps):
        factor = torch.diag(log_diagonal.exp()) + below.tril(-1)
        z = mu + torch.randn(DRAWS, FEATURES).double() @ factor.T
        joint = -((y - z @ x.T).square().sum(1) / VARIANCE + z.square().sum(1)) / 2  # log p(y, z), but for a constant
        mean, scale = mu.detach(), factor.detach()  # the cut: the score is noise, and 0 on average
        log_q = -solve_triangular(scale, (z - mean).T, upper=False).square().sum(0) / 2 - scale.diagonal().log().sum()
        loss = (log_q - joint).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        precision = x.T @ x / VARIANCE + torch.eye(FEATURES)
        apart = mu - torch.linalg.solve(precision, x.T @ y / VARIANCE)
        factor = torch.diag(log_diagonal.exp()) + below.tril(-1)
        spread = factor.T @ precision @ factor
        kl = (spread.trace() - torch.logdet(spread) - FEATURES + apart @ precision @ apart) / 2
        entropy = factor.diagonal().log().sum() + FEATURES * (1 + math.log(2 * math.pi)) / 2
    return {"kl": kl.item(), "entropy": entropy.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
