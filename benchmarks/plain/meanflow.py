"""MeanFlow on a Gaussian in the plane, in plain PyTorch: Geng et al. 2025, arXiv:2505.13447, algorithm 1.

    python benchmarks/plain/meanflow.py        # 2,500 batches of 512: samples nearly as wide as the data

A mean velocity is told by its own derivative along the path, which is a constant.
"""

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from torch.func import jvp

BATCH, WIDTH, STD, DECAY = 512, 64, 0.5, 0.99


class Velocity(nn.Module):
    """a(r, t) z + b(r, t)"""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 3)
        )

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        slope, offset = self.network(torch.stack([r, t, t - r, r * t], dim=1)).split([1, 2], dim=1)
        return slope * z + offset


def train(steps: int = 2500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    mean = torch.tensor([1.5, -1.0])
    velocity = Velocity()
    average = copy.deepcopy(velocity)
    optimizer = torch.optim.Adam(velocity.parameters(), lr=0.002, fused=True)
    started = time.perf_counter()

    for _ in range(steps):
        points, noise, times = mean + STD * torch.randn(BATCH, 2), torch.randn(BATCH, 2), torch.rand(2, BATCH)
        t = times.amax(0)
        r = torch.where(torch.arange(BATCH) < BATCH // 4, t, times.amin(0))
        z, v = points + t[:, None] * (noise - points), noise - points
        u, derivative, *_ = jvp(velocity, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        target = (v - (t - r)[:, None] * derivative).detach()  # the cut: alive, samples collapse to half the spread
        loss = (u - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, current in zip(average.parameters(), velocity.parameters(), strict=True):
                kept.lerp_(current, 1 - DECAY)

    seconds = time.perf_counter() - started
    with torch.no_grad():
        noise, zeros = torch.randn(2000, 2), torch.zeros(2000)
        samples = noise - average(noise, zeros, zeros + 1)
    ratio = (samples.std(0) / STD).mean().item()
    return {"std_ratio": ratio, "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
