"""Digits by a small convolutional network: functions for an epoch and a test, a schedule, arguments."""
# fast
# flow: loss -> conv1, conv2, hidden, classes

import argparse

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset


class ConvNet(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, kernel_size=3)
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=3)
        self.dropout = nn.Dropout(0.2)
        self.hidden = nn.Linear(2 * width * 16, 32)
        self.classes = nn.Linear(32, 10)

    def forward(self, images):
        h = self.conv1(images).relu()
        h = F.max_pool2d(self.conv2(h).relu(), 2)
        h = self.dropout(h.flatten(1))
        return self.classes(self.hidden(h).relu())


def digits(count):
    """Noisy pictures of ten fixed patterns."""
    labels = torch.randint(0, 10, (count,))
    patterns = torch.randn(10, 1, 12, 12, generator=torch.Generator().manual_seed(7))
    return TensorDataset(patterns[labels] + 0.5 * torch.randn(count, 1, 12, 12), labels)


def run_epoch(net, batches, optimizer, every):
    net.train()
    for number, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        if number % every == 0:
            print(f"  batch {number:3d} of {len(batches)}: {loss.item():.6f}")


def test(net, batches):
    net.eval()
    wrong = total = 0
    with torch.no_grad():
        for images, labels in batches:
            wrong += (net(images).argmax(1) != labels).sum().item()
            total += len(labels)
    return wrong / total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--decay", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=5)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_set = DataLoader(digits(192), batch_size=args.batch_size, shuffle=True)
    test_set = DataLoader(digits(64), batch_size=64)
    net = ConvNet()
    optimizer = optim.Adadelta(net.parameters(), lr=args.lr)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, gamma=args.decay)
    for epoch in range(args.epochs):
        print("epoch", epoch)
        run_epoch(net, train_set, optimizer, args.every)
        scheduler.step()
        print(f"  error {test(net, test_set):.4f}")
    print("weights", digest(net))


if __name__ == "__main__":
    main()
