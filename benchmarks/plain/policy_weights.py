"""Importance-weighted policy gradient on digits, as a loop in plain PyTorch: Espeholt et al. 2018, MiniMax 2025.

    python benchmarks/plain/policy_weights.py        # 1,000 steps: expected reward .10 -> .94

A policy names images and is only told whether it was right; a policy up to 10 steps older acts.
"""

import argparse
import copy
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

BATCH, WIDTH, REFRESH, BASELINE, HELD_OUT = 64, 64, 10, 0.3, 0.2


def train(steps: int = 1000, seed: int = 0) -> dict[str, float]:
    pixels, names = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 8 - 1, torch.tensor(names)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels, kept = images[order], labels[order], int(len(images) * (1 - HELD_OUT))

    torch.manual_seed(seed)
    last = nn.Linear(WIDTH, 10)
    nn.init.zeros_(last.weight)  # all choices are equally likely at first
    nn.init.zeros_(last.bias)
    policy = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), last, nn.LogSoftmax(1))
    behaviour = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.001, fused=True)
    started = time.perf_counter()

    for step in range(steps):
        if step % REFRESH == 0:
            behaviour.load_state_dict(policy.state_dict())
        here = torch.randint(kept, (BATCH,))
        with torch.no_grad():
            older = behaviour(images[here])
            actions = torch.multinomial(older.exp(), 1)
        rewards = (actions.squeeze(1) == labels[here]).float()
        log_probs = policy(images[here]).gather(1, actions).squeeze(1)
        weights = (log_probs - older.gather(1, actions).squeeze(1)).exp().detach()  # the cut: weighed, not learnt
        loss = -(weights * (rewards - BASELINE) * log_probs).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = time.perf_counter() - started
    with torch.no_grad():
        probs = policy(images[kept:]).exp()
    reward = probs.gather(1, labels[kept:, None]).mean().item()
    accuracy = (probs.argmax(1) == labels[kept:]).float().mean().item()
    return {"reward": reward, "accuracy": accuracy, "steps_per_second": steps / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in train(**vars(parser.parse_args())).items():
        print(f"{name}: {value:.4g}")
