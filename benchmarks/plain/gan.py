"""WGAN-GP on scikit-learn's 8x8 digits, as a loop in plain PyTorch: Gulrajani et al. 2017, arXiv:1704.00028.

    python benchmarks/plain/gan.py        # 2,700 batches, each three steps of D and one of G

Prints the Frechet distance (Heusel et al. 2017) in the features of a small classifier of the same digits.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

LATENT, WIDTH, BATCH, N_CRITIC, PENALTY, DECAY = 64, 256, 64, 3, 10.0, 0.99


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def make_generator() -> nn.Module:
    hidden = [nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())


def make_discriminator() -> nn.Module:
    hidden = [nn.Linear(64, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDTH, 1))


def gradient_penalty(discriminator: nn.Module, reals: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
    mix = torch.rand(len(reals), 1, 1, 1)
    points = (mix * reals + (1 - mix) * fakes).requires_grad_()  # a leaf, since the fakes are cut
    (gradient,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
    slope = gradient.flatten(1).norm(dim=1)
    return (slope - 1).square().mean(), slope.detach().mean()


def train_features(images: Tensor, labels: Tensor) -> nn.Module:
    """Images (N, 1, 8, 8) to 64 features: a classifier without its last layer."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
    features = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU())
    classifier = nn.Sequential(features, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=30 * math.ceil(len(images) / 64))
    for _ in range(30):
        for here in torch.randperm(len(images)).split(64):
            shifted = images[here].roll(torch.randint(-1, 2, (2,)).tolist(), dims=(2, 3))
            optimizer.zero_grad()
            F.cross_entropy(classifier(shifted), labels[here]).backward()
            optimizer.step()
            schedule.step()
    return features.eval()


def frechet(a: Tensor, b: Tensor) -> float:
    """Of features (N, 64) and (M, 64): |mean - mean|^2 + tr(A + B - 2 (A B)^(1/2))."""
    a, b = a.double(), b.double()
    root = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).sqrt().sum().real
    return ((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root).item()


def train(steps: int = 2700, seed: int = 0) -> dict[str, float]:
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(digits.images, dtype=torch.float32)[order, None] / 8) - 1
    kept = int(0.8 * len(images))  # to train on
    features = train_features(images[:kept], torch.tensor(digits.target)[order][:kept])

    torch.manual_seed(seed)
    generator, discriminator = make_generator(), make_discriminator()
    average = copy.deepcopy(generator).requires_grad_(False)  # of the generator's weights: what is sampled
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99), fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99), fused=True)
    started = time.perf_counter()

    for here in batches(kept, N_CRITIC * BATCH, steps):
        for reals in images[here].split(BATCH):
            fakes = generator(torch.randn(BATCH, LATENT)).detach()  # the cut: D's loss must not teach the generator
            d_loss = discriminator(fakes).mean() - discriminator(reals).mean()
            penalty, slope = gradient_penalty(discriminator, reals, fakes)
            d_optimizer.zero_grad()
            (d_loss + PENALTY * penalty).backward()
            d_optimizer.step()

        discriminator.requires_grad_(False)  # the cut: G's loss goes through D and must not teach it
        g_loss = -discriminator(generator(torch.randn(BATCH, LATENT))).mean()
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)

        with torch.no_grad():
            for averaged, current in zip(average.parameters(), generator.parameters(), strict=True):
                averaged.lerp_(current, 1 - DECAY)

    seconds = time.perf_counter() - started
    with torch.no_grad():
        samples = average(torch.randn(len(images), LATENT))
        distance = frechet(features(samples), features(images))
    return {"frechet": distance, "slope": slope.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
