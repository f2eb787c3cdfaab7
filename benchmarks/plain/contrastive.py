"""CLIP in shards, as a loop in plain PyTorch: Radford et al. 2021, arXiv:2103.00020, figure 3.

    python benchmarks/plain/contrastive.py        # 200 batches of 32 pairs: .9 of 256 held-out images find their text

One process plays four shards, each of which computes the loss of the whole matrix; their gradients are averaged.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, LATENTS, WIDTH, PAIRS, HELD_OUT, BATCH, SHARDS, TEMPERATURE = 16, 8, 8, 2048, 256, 32, 4, 0.2


def view(latents: Tensor) -> Tensor:
    """(N, FEATURES)"""
    mixing = torch.randn(LATENTS, FEATURES).double() / LATENTS**0.5
    return latents @ mixing + 0.2 * torch.randn(len(latents), FEATURES).double()


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh()).double()


def train(steps: int = 200, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    latents = torch.randn(PAIRS + HELD_OUT, LATENTS).double()
    images, texts = view(latents), view(latents)
    f, g = tower(), tower()
    optimizer = torch.optim.SGD([*f.parameters(), *g.parameters()], lr=0.3)
    diagonal = torch.arange(BATCH)
    started = time.perf_counter()

    for k in range(steps):
        if k % (PAIRS // BATCH) == 0:
            order = torch.randperm(PAIRS)
        here = order[k % (PAIRS // BATCH) * BATCH :][:BATCH]
        own = F.normalize(f(images[here]), dim=1), F.normalize(g(texts[here]), dim=1)
        losses = []
        for _ in range(SHARDS):  # no cut: what a shard has from the others is live, so each has the whole graph
            logits = own[0] @ own[1].T / TEMPERATURE
            losses.append((F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        similar = F.normalize(f(images[PAIRS:]), dim=1) @ F.normalize(g(texts[PAIRS:]), dim=1).T
        accuracy = (similar.argmax(1) == torch.arange(HELD_OUT)).double().mean().item()
    return {"accuracy": accuracy, "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
