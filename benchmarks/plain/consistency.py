"""Consistency training (Song et al. 2023, arXiv:2303.01469, algorithm 3) of eight Gaussians, in plain PyTorch.

    python benchmarks/plain/consistency.py        # 1,000 batches of 256: energy distance .05 to .1

The answer at more noise must agree with that at less, which must stay put, or they meet in the middle.
"""

import argparse
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

BATCH, WIDTH, LEVELS, LEAST, MOST, RHO = 256, 128, 18, 0.002, 10.0, 7.0


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    angles = torch.randint(8, (n,), generator=generator) * math.pi / 4
    ring = math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1)
    return ring + 0.1 * torch.randn(n, 2, generator=generator)


def energy_distance(a: Tensor, b: Tensor) -> float:
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (2 * torch.cdist(a, b).mean() - sum(within)).item()


def train(steps: int = 1000, seed: int = 0) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    points, held_out = (eight_gaussians(n, generator) for n in (10_000, 2_000))

    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(3, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, 2),
    )

    def f(x: Tensor, t: Tensor) -> Tensor:
        """Where the path through x (B, 2) at level t (B, 1) begins; x itself at the least level."""
        apart, scale = t - LEAST, (t.square() + 1).sqrt()
        c_skip, c_out = 1 / (apart.square() + 1), apart / scale
        return c_skip * x + c_out * network(torch.cat([x / scale, t.log() / 4], dim=1))

    levels = torch.linspace(LEAST ** (1 / RHO), MOST ** (1 / RHO), LEVELS) ** RHO
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    started = time.perf_counter()

    for here in batches(len(points), BATCH, steps):
        z, n = torch.randn(BATCH, 2), torch.randint(LEVELS - 1, (BATCH,))
        more, less = levels[n + 1, None], levels[n, None]
        prediction = f(points[here] + more * z, more)
        target = f(points[here] + less * z, less).detach()  # the cut: what is known at less noise stays put
        loss = (prediction - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        noise = torch.randn(len(held_out), 2, generator=torch.Generator().manual_seed(0))
        samples = f(MOST * noise, torch.full((len(noise), 1), MOST))
    found = {"energy_distance": energy_distance(samples, held_out), "loss": loss.item()}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
