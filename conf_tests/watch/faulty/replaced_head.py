"""A head is exchanged for another number of classes, after the optimiser was made."""

# finds: error unstepped_parameter

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x))


class Task:
    def __init__(self, pretrained: Model, classes: int) -> None:
        self.model = pretrained
        # mended: self.model.fc = nn.Linear(16, classes)
        # mended: self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)  # here
        # mended:
        self.model.fc = nn.Linear(16, classes)

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    torch.manual_seed(0)
    task = Task(Model(classes=10), classes=3)
    for _ in range(8):
        task.step(torch.randn(16, 8), torch.randint(3, (16,)))


if __name__ == "__main__":
    main()
