"""MuZero's half gradient on a model of one number, as a loop in plain PyTorch: Schrittwieser et al. 2020.

    python benchmarks/plain/muzero.py        # 200 steps of a 20-step unroll: the factor .9 is found

The gradient at the start of each step of the model is halved, so that its length does not grow with the unroll.
"""

import argparse
import time

import torch

UNROLL, TRUTH = 20, 0.9


def train(steps: int = 200, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    truth = TRUTH ** torch.arange(1, UNROLL + 1, dtype=torch.float64)
    optimizer = torch.optim.SGD([theta], lr=0.25)
    started = time.perf_counter()

    for _ in range(steps):
        state, states = torch.ones((), dtype=torch.float64), []
        for _ in range(UNROLL):
            state = theta * (state / 2 + state.detach() / 2)  # a half of the gradient goes on to the step before
            states.append(state)
        loss = (torch.stack(states) - truth).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    return {"error": abs(theta.item() - TRUTH), "loss": loss.item(), "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
