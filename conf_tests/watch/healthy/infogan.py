"""InfoGAN: three losses and three optimisers; the third holds both networks again, on purpose."""
# flow: d_loss -> discriminator; g_loss -> generator, discriminator; info_loss -> generator, discriminator
# cut: d_loss -> generator

from itertools import chain

import torch
from digest import digest
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

LATENT, KINDS, BATCH = 4, 3, 16


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENT + KINDS, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, kind):
        return self.net(torch.cat([torch.randn(len(kind), LATENT), one_hot(kind, KINDS)], 1))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2))
        self.real_head = nn.Linear(24, 1)
        self.kind_head = nn.Linear(24, KINDS)

    def forward(self, x):
        h = self.trunk(x)
        return self.real_head(h), self.kind_head(h)


def kinds():
    return torch.randint(KINDS, (BATCH,))


torch.manual_seed(33)
generator, discriminator = Generator(), Discriminator()
optimizer_G = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_info = torch.optim.Adam(chain(generator.parameters(), discriminator.parameters()), lr=2e-3)
yes, no = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
for i in range(34):
    optimizer_G.zero_grad()
    fake = generator(kinds())
    g_loss = mse_loss(discriminator(fake)[0], yes)
    g_loss.backward()
    optimizer_G.step()

    optimizer_D.zero_grad()
    real = 0.2 * torch.randn(BATCH, 2) + 2 * kinds()[:, None]
    d_loss = (mse_loss(discriminator(real)[0], yes) + mse_loss(discriminator(fake.detach())[0], no)) / 2
    d_loss.backward()
    optimizer_D.step()

    optimizer_info.zero_grad()
    wanted = kinds()
    info_loss = cross_entropy(discriminator(generator(wanted))[1], wanted)
    info_loss.backward()
    optimizer_info.step()
    if i % 11 == 0:
        print(f"{i}: D {d_loss.item():.4f} G {g_loss.item():.4f} info {info_loss.item():.4f}")
print("weights", digest(generator, discriminator))
