"""SAC's actor and temperature where Q is known, as a loop in plain PyTorch: Haarnoja et al. 2018, arXiv:1812.05905.

    python benchmarks/plain/sac.py        # 1,500 steps: entropy .5, alpha .1592

The action is one number, Q = -a^2 / 2, the entropy is to be .5; 200 points of noise in the place of samples.
"""

import argparse
import math
import time

import torch

TARGET, POINTS = 0.5, 200


def train(steps: int = 1500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    noise = torch.special.ndtri((torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS)
    noise = noise / noise.square().mean().sqrt()
    mean = torch.ones((), dtype=torch.float64, requires_grad=True)
    log_std, log_alpha = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([mean, log_std, log_alpha], lr=0.02)
    started = time.perf_counter()

    for _ in range(steps):
        actions = mean + log_std.exp() * noise  # live: Q teaches through the sample
        z = (actions - mean) / log_std.exp()
        log_prob = -z.square() / 2 - log_std - math.log(2 * math.pi) / 2
        alpha = log_alpha.exp()
        actor = (alpha.detach() * log_prob + actions.square() / 2).mean()  # the cut: it weighs
        temperature = -(alpha * (log_prob + TARGET).detach()).mean()  # the cut: the entropy is what it is
        optimizer.zero_grad()
        (actor + temperature).backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    entropy = log_std.item() + math.log(2 * math.pi * math.e) / 2
    return {"entropy": entropy, "alpha": alpha.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
