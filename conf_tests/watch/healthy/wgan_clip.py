"""WGAN with clipped weights: two critic steps a generator step, the critic's requires_grad switched on and off."""
# flow: D_loss -> D; G_loss -> G
# cut: D_loss -> G; G_loss -> D

import torch
from digest import digest
from torch import nn


class G_Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, z):
        return self.net(z)


class D_Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x)


def infinite(size):
    while True:
        centre = torch.randint(0, 4, (size,)).float() * 1.57
        yield torch.stack([centre.cos(), centre.sin()], 1) + 0.05 * torch.randn(size, 2)


torch.manual_seed(41)
G, D = G_Net(), D_Net()
optG = torch.optim.RMSprop(G.parameters(), lr=1e-3)
optD = torch.optim.RMSprop(D.parameters(), lr=1e-3)
data = infinite(32)
for iteration in range(32):
    for p in D.parameters():
        p.requires_grad = True
    for _ in range(2):
        D.zero_grad()
        with torch.no_grad():
            fake = G(torch.randn(32, 4))
        D_loss = D(fake).mean() - D(next(data)).mean()
        D_loss.backward()
        optD.step()
        for p in D.parameters():
            p.data.clamp_(-0.1, 0.1)

    for p in D.parameters():
        p.requires_grad = False
    G.zero_grad()
    G_loss = -D(G(torch.randn(32, 4))).mean()
    G_loss.backward()
    optG.step()
    if iteration % 8 == 0:
        print(f"iter {iteration}, Wasserstein {-D_loss.item():.6f}, G loss {G_loss.item():.6f}")
print("weights", digest(G, D))
