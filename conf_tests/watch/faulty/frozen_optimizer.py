"""A linear probe: the backbone is frozen, and the optimiser is given the backbone in place of the head."""

# finds: error empty_optimizer

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Probe(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, classes)

    def freeze(self) -> None:
        for p in self.backbone.parameters():
            p.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def train(model: Probe, optimizer: torch.optim.Optimizer, steps: int) -> float:
    total = 0.0
    for _ in range(steps):
        x, y = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()  # here
        total += loss.item()
    return total / steps


def main() -> None:
    torch.manual_seed(0)
    model = Probe(classes=3)
    model.freeze()
    # mended: optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        train(model, optimizer, steps=5)


if __name__ == "__main__":
    main()
