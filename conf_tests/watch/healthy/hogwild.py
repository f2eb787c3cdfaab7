"""Hogwild with one child: it trains the shared model; then the parent trains on."""
# flow: loss -> fc1, fc2

import argparse
import os

import torch
import torch.multiprocessing as mp
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def train(rank, args, model, steps):
    torch.manual_seed(args.seed + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    for step in range(steps):
        x = torch.randn(16, 6)
        target = x[:, :3].argmax(1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(
                f"{'parent' if os.getpid() == args.parent else 'child'}\tstep {step} loss {loss.item():.6f}", flush=True
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.parent = os.getpid()
    torch.manual_seed(args.seed)
    model = Net()
    model.share_memory()
    process = mp.get_context("fork").Process(target=train, args=(1, args, model, 31))
    process.start()
    process.join()
    train(0, args, model, 31)
    print("weights", digest(model))


if __name__ == "__main__":
    main()
