"""Fine-tuning with the flag set on the module, where nobody reads it."""

# finds: error module_flag

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3))


class Classifier(nn.Module):
    def __init__(self, freeze: bool) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.outc = nn.Linear(16, 4)
        if freeze:
            # mended: self.encoder.requires_grad_(False)
            self.encoder.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.outc(self.encoder(x))


def main() -> None:
    torch.manual_seed(0)
    model = Classifier(freeze=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        x, y = torch.randn(8, 3, 10, 10), torch.randint(4, (8,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
