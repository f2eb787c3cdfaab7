"""Adversarial training: an attack by steps on the input, whose gradients at the network are thrown away."""
# fast
# flow: attack_loss -> delta, features, fc; loss -> features, fc

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(54, 3)

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


def pgd(model, X, y, epsilon=0.3, alpha=0.1, attack_iters=3):
    delta = torch.empty_like(X).uniform_(-epsilon, epsilon).requires_grad_(True)
    for _ in range(attack_iters):
        attack_loss = F.cross_entropy(model(X + delta), y)
        attack_loss.backward()
        with torch.no_grad():
            delta += alpha * delta.grad.sign()
            delta.clamp_(-epsilon, epsilon)
        delta.grad.zero_()
    return delta.detach()


def main():
    torch.manual_seed(50)
    model = Net()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    patterns = torch.randn(3, 1, 8, 8)
    for i in range(32):
        y = torch.randint(0, 3, (16,))
        X = patterns[y] + 0.5 * torch.randn(16, 1, 8, 8)
        model.eval()
        delta = pgd(model, X, y)
        model.train()
        output = model(X + delta)
        loss = F.cross_entropy(output, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if i % 8 == 0:
            print(f"{i}\t{loss.item():.4f}\t{(output.argmax(1) == y).float().mean().item():.4f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
