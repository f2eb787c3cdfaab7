"""TD(0) on Baird's star, as a loop in plain PyTorch: Baird 1995; Sutton & Barto 2018, figure 11.1.

    python benchmarks/plain/td.py        # 20,000 updates: it diverges, as the semi-gradient does here

Seven states that all lead to the seventh, no reward, eight weights: V(i) = 2 w_i + w_8, and V(7) = w_7 + 2 w_8.
"""

import argparse
import time

import torch
from torch import nn

DISCOUNT = 0.99


def train(steps: int = 20_000, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    states = torch.cat([2 * torch.eye(7), torch.ones(7, 1)], dim=1).double()
    states[6, 6:] = torch.tensor([1.0, 2.0])
    value = nn.Linear(8, 1, bias=False, dtype=torch.float64)
    value.weight.data[0] = torch.tensor([1.0, 1, 1, 1, 1, 1, 10, 1])
    optimizer = torch.optim.SGD(value.parameters(), lr=0.01)
    drawn = torch.randint(7, (steps,))
    started = time.perf_counter()

    for state in drawn:
        reward, following = 0.0, states[6]
        target = reward + DISCOUNT * value(following).detach()  # the cut: V moves to its target, which stays put
        loss = (target - value(states[state])).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        error = value(states).square().mean().sqrt().item()  # the true values are 0
    found = {"weight_norm": value.weight.norm().item(), "value_error": error}
    return found | {"steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
