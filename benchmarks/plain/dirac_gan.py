"""The Dirac-GAN, as a loop in plain PyTorch: Mescheder et al. 2018, arXiv:1801.04406, definition 2.1.

    python benchmarks/plain/dirac_gan.py        # 500 alternating steps from (1, 1) circle at a radius of about 1.4

The data is the point 0, the generator the point theta, the discriminator D(x) = psi x.
"""

import argparse
import math
import time

import torch


def train(steps: int = 500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)  # nothing is drawn
    theta = torch.nn.Parameter(torch.ones(()))
    psi = torch.nn.Parameter(torch.ones(()))
    g_optimizer = torch.optim.SGD([theta], lr=0.1)
    d_optimizer = torch.optim.SGD([psi], lr=0.1)
    real = torch.zeros(())
    started = time.perf_counter()

    for _ in range(steps):
        fake = theta.detach()  # the cut: the discriminator's loss must not move the generator
        d_loss = psi * fake - psi * real
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

        slope = psi.detach()  # the cut: the generator's loss must not move the discriminator
        g_loss = -slope * theta
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()

    seconds = time.perf_counter() - started
    found = {"theta": theta.item(), "psi": psi.item(), "radius": math.hypot(theta.item(), psi.item())}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
