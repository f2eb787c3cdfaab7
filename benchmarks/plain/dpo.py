"""DPO on a table of answers, as a loop in plain PyTorch: Rafailov et al. 2023, arXiv:2305.18290.

    python benchmarks/plain/dpo.py        # 500 steps: the margin comes to logit(.8) / .5 = 2.7726

One pair of answers for each of four prompts; the chosen one is chosen four times in five.
"""

import argparse
import time

import torch
from torch.nn.functional import logsigmoid

PROMPTS, ANSWERS, BETA, WRONG = 4, 6, 0.5, 0.2


def train(steps: int = 500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    reference = torch.randn(PROMPTS, ANSWERS, dtype=torch.float64)
    policy = reference.clone().requires_grad_()
    chosen, rejected = torch.rand(PROMPTS, ANSWERS).argsort(1)[:, :2].unbind(1)
    each = torch.arange(PROMPTS)
    optimizer = torch.optim.SGD([policy], lr=2)
    started = time.perf_counter()

    for _ in range(steps):
        with torch.no_grad():  # the cut: the reference is a constant to compare with
            ref = reference.log_softmax(-1)
        ratios = policy.log_softmax(-1) - ref
        h = ratios[each, chosen] - ratios[each, rejected]
        loss = -((1 - WRONG) * logsigmoid(BETA * h) + WRONG * logsigmoid(-BETA * h)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"margin": h.mean().item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
