"""A network and a loss that are compiled."""
# flow: loss -> body, head

import torch
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.GELU())
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.body(x)).squeeze(1)


def main():
    torch.manual_seed(73)
    net = Net()
    model = torch.compile(net, backend="aot_eager")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(35):
        x = torch.randn(32, 6)
        loss = (model(x) - x.sum(1).sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(step, f"{loss.item():.5f}")
    print("weights", digest(net))


if __name__ == "__main__":
    main()
