"""Super-resolution; the batches come from two worker processes."""
# flow: loss -> first, second, last

import argparse

import torch
import torch.nn as nn
from digest import digest
from super_resolution.dataset import Waves
from super_resolution.model import SubPixel
from torch.utils.data import DataLoader


def train(epoch):
    losses = []
    for small, large in train_batches:
        optimizer.zero_grad()
        loss = criterion(model(small), large)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}")


def signal_to_noise():
    with torch.no_grad():
        errors = torch.stack([criterion(model(small), large) for small, large in test_batches])
    return -10 * errors.mean().log10().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(123)
    train_batches = DataLoader(Waves(48, options.factor, 0), 4, shuffle=True, num_workers=options.workers)
    test_batches = DataLoader(Waves(8, options.factor, 1), 4)
    model = SubPixel(options.factor)
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(options.epochs):
        train(epoch)
        print(f"{signal_to_noise():.4f} dB")
    print("weights", digest(model))
