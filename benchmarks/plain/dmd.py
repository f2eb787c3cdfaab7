"""Distribution matching distillation between two Gaussians, in plain PyTorch: Yin et al. 2024, arXiv:2405.14867.

    python benchmarks/plain/dmd.py        # 300 steps: the mean comes to 2

The score difference is written as a loss: half the squared distance of x from x - g, which is a constant.
"""

import argparse
import time

import torch

MEAN, STD, WIDTH, POINTS = 2.0, 1.0, 0.5, 400


def train(steps: int = 300, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    z = torch.special.ndtri((torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS)
    z /= z.square().mean().sqrt()
    mean = torch.nn.Parameter(0.1 * torch.randn((), dtype=torch.float64))
    optimizer = torch.optim.SGD([mean], lr=0.05)
    started = time.perf_counter()

    for _ in range(steps):
        x = mean + WIDTH * z
        fake_mean, fake_variance = x.detach().mean(), x.detach().var(correction=0)
        g = (x - MEAN) / STD**2 - (x - fake_mean) / fake_variance  # score of the fakes minus score of the data
        loss = (x - (x - g).detach()).square().mean() / 2  # the cut: alive, the gradient is -3 g here
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"mean": mean.item(), "mean_error": abs(mean.item() - MEAN), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
