"""Quantisation-aware training with a straight-through estimator, in plain PyTorch: Bengio et al. 2013, arXiv:1308.3432.

    python benchmarks/plain/quantise.py        # 200 steps: every weight finds its code, loss 0

Rounding has no slope; the identity lends it one, and the difference of the two is a constant.
"""

import argparse
import time

import torch

WEIGHTS, STEP, LOW, HIGH = 256, 0.5, -2, 1


def train(steps: int = 200, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    wanted = STEP * torch.randint(LOW, HIGH + 1, (WEIGHTS,)).double()
    weights = torch.nn.Parameter(0.1 * torch.randn(WEIGHTS, dtype=torch.float64))
    optimizer = torch.optim.SGD([weights], lr=20.0)  # the loss is a mean over the weights
    started = time.perf_counter()

    for _ in range(steps):
        inside = (weights / STEP).clamp(LOW, HIGH)
        codes = inside + (inside.round() - inside).detach()  # the cut: alive, the slopes cancel
        loss = (STEP * codes - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    found = STEP * (weights / STEP).clamp(LOW, HIGH).round()
    wrong = (found != wanted).double().mean().item()
    return {
        "quantise_loss": (found - wanted).square().mean().item(),
        "wrong_codes": wrong,
        "steps_per_second": steps / seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
