"""A classifier whose training loop never zeroes a gradient."""

# finds: error never_zeroed

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.criterion = nn.CrossEntropyLoss()

    def epoch(self, data: list[tuple[Tensor, Tensor]]) -> float:
        self.model.train()
        total = 0.0
        for x, y in data:
            output = self.model(x)
            loss = self.criterion(output, y)
            # mended: self.optimizer.zero_grad()
            # mended: loss.backward()
            loss.backward()
            self.optimizer.step()  # here
            total += loss.item()
        return total / len(data)


def main() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(5)]
    trainer = Trainer(Net())
    for _ in range(2):
        trainer.epoch(data)


if __name__ == "__main__":
    main()
