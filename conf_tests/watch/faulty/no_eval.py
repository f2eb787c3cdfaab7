"""A ConvNet whose test runs under ``no_grad`` and in train mode."""

# finds: error never_eval

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.drop(x).mean((2, 3)))


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


def test(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    correct = 0
    # mended: model.eval()
    # mended: with torch.no_grad():
    with torch.no_grad():
        for x, y in data:
            output = model(x)  # here
            correct += int((output.argmax(1) == y).sum())
    return correct / sum(len(y) for _, y in data)


def main() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(6)]
    model = ConvNet()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    for _ in range(3):
        train(model, data[:4], optimizer)
        test(model, data[4:])


if __name__ == "__main__":
    main()
