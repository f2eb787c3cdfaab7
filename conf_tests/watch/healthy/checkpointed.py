"""Activations recomputed in the backward: one block by the reentrant way, one by the other."""
# fast
# flow: loss -> embed, block1, block2, head

import torch
from digest import digest
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * d, d))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.embed = nn.Linear(5, d)
        self.block1 = Block(d)
        self.block2 = Block(d)
        self.head = nn.Linear(d, 2)

    def forward(self, x):
        x = self.embed(x)
        x = checkpoint(self.block1, x, use_reentrant=True)
        x = checkpoint(self.block2, x, use_reentrant=False)
        return self.head(x)


def main():
    torch.manual_seed(23)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(36):
        x = torch.randn(16, 5)
        y = (x.sum(1) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 12 == 0:
            print(f"step {step}: {loss.item():.5f}")
    print("weights", digest(model))


if __name__ == "__main__":
    main()
