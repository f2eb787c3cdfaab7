"""Second-order DARTS on two parabolas, in plain PyTorch: Liu et al. 2019, arXiv:1806.09055, eq. 7.

    python benchmarks/plain/darts.py        # 400 steps: (alpha, w) = (1, 1)

The architecture alpha is judged by weights one inner step ahead, and the step is because of alpha.
"""

import argparse
import time

import torch

XI = 0.5


def train(steps: int = 400, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    alpha = torch.nn.Parameter(2 + 0.1 * torch.randn((), dtype=torch.float64))
    w = torch.nn.Parameter(-2 + 0.1 * torch.randn((), dtype=torch.float64))
    architecture, weights = torch.optim.SGD([alpha], lr=0.05), torch.optim.SGD([w], lr=0.2)
    started = time.perf_counter()

    for _ in range(steps):
        point = w.detach().requires_grad_()  # the cut: validation must not teach the weights
        (inner,) = torch.autograd.grad((point - alpha).square(), point, create_graph=True)
        stepped = point - XI * inner  # no cut here: detached, alpha ends at 2
        val_loss = alpha * stepped - 2 * alpha + 1
        architecture.zero_grad()
        val_loss.backward()
        architecture.step()

        train_loss = (w - alpha.detach()).square()  # the cut: training must not teach alpha
        weights.zero_grad()
        train_loss.backward()
        weights.step()

    seconds = time.perf_counter() - started
    return {"alpha": alpha.item(), "w": w.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
