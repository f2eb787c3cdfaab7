"""On-policy distillation of a bigram language model, as a loop in plain PyTorch: Agarwal et al. 2024, arXiv:2306.13649.

    python benchmarks/plain/distill.py        # 2,000 steps: KL(student, teacher) of a symbol 1.0 -> below 1e-3

A student writes symbols, each by the one before; its teacher says how likely it finds them.
"""

import argparse
import time

import torch

SYMBOLS, LENGTH, SAMPLES = 5, 8, 64


def train(steps: int = 2000, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    student = torch.randn(SYMBOLS, SYMBOLS, dtype=torch.float64, requires_grad=True)  # logits of what follows each
    teacher = torch.randn(SYMBOLS, SYMBOLS, dtype=torch.float64)
    optimizer = torch.optim.Adam([student], lr=0.01)
    started = time.perf_counter()

    for _ in range(steps):
        log_s, log_t = student.log_softmax(1), teacher.log_softmax(1)
        before = torch.zeros(SAMPLES, dtype=torch.long)
        loss = torch.zeros((), dtype=torch.float64)
        for _ in range(LENGTH):
            after = torch.multinomial(log_s[before].exp().detach(), 1).squeeze(1)
            advantages = (log_t - log_s)[before, after].detach()  # the cut: earned, and not learnt
            loss = loss - (advantages * log_s[before, after]).mean()
            before = after
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        log_s, log_t = student.log_softmax(1), teacher.log_softmax(1)
        divergence = (log_s.exp() * (log_s - log_t)).sum(1).mean()
    return {"kl": divergence.item(), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
