"""A small transformer, and input times gradient with its gates frozen, in plain PyTorch: arXiv:2202.07304.

    python benchmarks/plain/attribution.py        # 300 batches of 64: nothing of the logits is missing

It tells which of two tokens is more frequent; pattern, norm and gate are constants where its inputs are explained.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, LENGTH, WIDTH, LAYERS = 4, 6, 16, 2


def normed(x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
    return x / cut((x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def train(steps: int = 300, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    sizes = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH))
    layers = nn.ModuleList(nn.Linear(*size, bias=False) for _ in range(LAYERS) for size in sizes)
    head = nn.Linear(WIDTH, 1, bias=False)
    model = nn.ModuleList([embedding, layers, head]).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def logits(x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        for k in range(LAYERS):
            qkv, out, up, down = layers[4 * k : 4 * k + 4]
            query, key, value = qkv(normed(x, cut)).chunk(3, dim=-1)
            pattern = (query @ key.transpose(1, 2) / WIDTH**0.5).softmax(-1)
            x = x + out(cut(pattern) @ value)
            hidden = up(normed(x, cut))
            x = x + down(hidden * cut((1.702 * hidden).sigmoid()))
        return head(normed(x, cut).mean(1)).squeeze(1)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(VOCABULARY, (n, LENGTH))
        return tokens, ((tokens == 0).sum(1) > (tokens == 1).sum(1)).double()

    started = time.perf_counter()
    for _ in range(steps):
        tokens, labels = draw(64)
        loss = F.binary_cross_entropy_with_logits(logits(embedding(tokens), lambda value: value), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - started

    tokens, labels = draw(64)
    x = embedding(tokens).detach().requires_grad_()
    found = logits(x, torch.Tensor.detach)  # the cuts: what decides how much of an input passes is a constant
    (gradient,) = torch.autograd.grad(found.sum(), x)
    apart = (x * gradient).sum((1, 2)) - found
    return {
        "conservation_error": (apart.abs().mean() / found.abs().mean()).item(),
        "accuracy": ((found > 0) == (labels > 0)).double().mean().item(),
        "steps_per_second": steps / seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
