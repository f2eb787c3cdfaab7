"""A mixture of four linear experts with top-1 routing, as a loop in plain PyTorch: Fedus et al. 2021, arXiv:2101.03961.

    python benchmarks/plain/moe.py        # 1,500 batches of 256: mean squared error below .2 of labels that vary by 1

Four clusters, each with a linear map of its own; the router hears of the task through the gate alone.
"""

import argparse
import time

import torch
from torch import Tensor, nn

EXPERTS, FEATURES, BATCH, BALANCE = 4, 8, 256, 0.02


def train(steps: int = 1500, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(FEATURES, FEATURES, dtype=torch.float64))[0]

    def draw(n: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(EXPERTS, (n,))
        inputs = 4 * axes[which] + torch.randn(n, FEATURES, dtype=torch.float64)
        return inputs, (inputs * axes[EXPERTS + which]).sum(1)

    router = nn.Linear(FEATURES, EXPERTS, dtype=torch.float64)
    experts = nn.Linear(FEATURES, EXPERTS, bias=False, dtype=torch.float64)
    optimizer = torch.optim.Adam([*router.parameters(), *experts.parameters()], lr=0.005)
    data, labels = draw(4096)
    started = time.perf_counter()

    def answers(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = router(inputs).softmax(1)
        gate, chosen = p.max(1)  # divided by itself, the gate would be 1 and its gradient 0
        return gate * experts(inputs).gather(1, chosen[:, None]).squeeze(1), p, chosen

    for _ in range(steps):
        here = torch.randint(len(data), (BATCH,))
        answer, p, chosen = answers(data[here])
        load = chosen.bincount(minlength=EXPERTS) / BATCH  # a count: it has no gradient
        loss = (answer - labels[here]).square().mean() / 2 + BALANCE * EXPERTS * (load * p.mean(0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        held_out, truth = draw(2048)
        answer, _, chosen = answers(held_out)
        error = (answer - truth).square().mean().item()
        load = chosen.bincount(minlength=EXPERTS).max().item() * EXPERTS / len(held_out)
    return {"task_error": error, "max_load": load, "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
