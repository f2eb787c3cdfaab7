"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) of scikit-learn's digits, as a loop in plain PyTorch.

    python benchmarks/plain/vqvae.py        # 1,000 batches of 64: squared error 1.4, perplexity 28 of 32 codes

Rounding to a code has no gradient; the straight-through estimator (Bengio et al. 2013) carries it across.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, WIDTH, POSITIONS, CODES, DIMENSIONS, BETA = 64, 128, 4, 32, 8, 0.25


def batches(n: int, size: int, count: int) -> Iterator[Tensor]:
    """Indices, pass after pass in a fresh order; the smaller batch at the end of a pass is left out."""
    for k in range(count):
        if k % (n // size) == 0:
            order = torch.randperm(n)
        yield order[k % (n // size) * size :][:size]


def train(steps: int = 1000, seed: int = 0) -> dict[str, float]:
    pixels, _ = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 8 - 1
    kept = int(0.8 * len(images))  # to train on

    torch.manual_seed(seed)
    size = POSITIONS * DIMENSIONS
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, size),
        nn.Unflatten(1, (POSITIONS, DIMENSIONS)),
    )
    decoder = nn.Sequential(
        nn.Flatten(), nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64), nn.Unflatten(1, (1, 8, 8))
    )
    codebook = nn.Embedding(CODES, DIMENSIONS)
    nn.init.uniform_(codebook.weight, -1 / CODES, 1 / CODES)
    parameters = [*encoder.parameters(), *decoder.parameters(), *codebook.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, fused=True)

    def nearest(z: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cdist(z.flatten(0, 1), codebook.weight).argmin(1).view(z.shape[:2])

    started = time.perf_counter()
    for here in batches(kept, BATCH, steps):
        z = encoder(images[here])
        e = codebook(nearest(z))
        quantised = z + (e - z).detach()  # the cut: e in value, and the gradient goes on to z
        reconstruction = (decoder(quantised) - images[here]).square().flatten(1).sum(1).mean() / 4
        codes = (e - z.detach()).square().sum(-1).mean()  # the codes move, the encoder does not
        commitment = (z - e.detach()).square().sum(-1).mean()  # the encoder moves, the codes do not
        optimizer.zero_grad()
        (reconstruction + codes + BETA * commitment).backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        z = encoder(images[kept:])
        index = nearest(z)
        usage = F.one_hot(index.flatten(), CODES).float().mean(0)
        error = (decoder(codebook(index)) - images[kept:]).square().flatten(1).sum(1).mean() / 4
    found = {
        "squared_error": error.item(),
        "perplexity": torch.special.entr(usage).sum().exp().item(),
        "encoder_norm": z.norm(dim=-1).mean().item(),
    }
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
