"""Consistency: what the network says of a clean view, under no_grad and in train mode, is to be said of a noisy one."""
# flow: loss -> body, head

import torch
from digest import digest
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def main() -> None:
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(32):
        x, y, unlabelled = torch.randn(16, 10), torch.randint(4, (16,)), torch.randn(32, 10)
        with torch.no_grad():
            clean = (model(unlabelled) / 0.5).softmax(1)
        noisy = model(unlabelled + 0.3 * torch.randn_like(unlabelled)).log_softmax(1)
        loss = F.cross_entropy(model(x), y) + F.kl_div(noisy, clean, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("weights", digest(model))


if __name__ == "__main__":
    main()
