"""Small scripts with known stops."""

GAN = """\
import torch
from torch import nn, optim

torch.manual_seed({seed})
G = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
D = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
g_opt, d_opt = optim.Adam(G.parameters()), optim.Adam(D.parameters())
bce = nn.functional.binary_cross_entropy_with_logits
ones, zeros = torch.ones(32, 1), torch.zeros(32, 1)

for step in range({steps}):
    real, fake = torch.randn(32, 2) + 3, G(torch.randn(32, 4))
    d_loss = bce(D(real), ones) + bce(D(fake.detach()), zeros)
    d_opt.zero_grad()
    d_loss.backward()
    d_opt.step()

    g_loss = bce(D(G(torch.randn(32, 4))), ones)
    g_opt.zero_grad()
    g_loss.backward()
    g_opt.step()
with torch.no_grad():
    print("score:", D(G(torch.randn(32, 4))).mean().item())
"""


def gan(seed: object = 0, steps: int = 6) -> str:
    """A GAN: its fakes are cut at line 13; gradients are cleared at 14 and 19; it is looked at under no_grad at 22."""
    return GAN.format(seed=seed, steps=steps)
