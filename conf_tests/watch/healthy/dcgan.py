"""A convolutional GAN at module level: D on real, D on a detached fake, each its own backward; then G through D."""
# fast
# flow: errD_real -> netD; errD_fake -> netD; errG -> netG, netD
# cut: errD_fake -> netG

import torch
import torch.nn as nn
from digest import digest

torch.manual_seed(999)
BATCH, LATENT = 16, 8


def initialise(layer):
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.05)


def up(inside, outside, kernel, stride, padding):
    return nn.ConvTranspose2d(inside, outside, kernel, stride, padding, bias=False)


class Generator(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            up(LATENT, width, 4, 1, 0), nn.BatchNorm2d(width), nn.ReLU(inplace=True), up(width, 1, 4, 2, 1), nn.Tanh()
        )

    def forward(self, z):
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 1, 4, bias=False),
        )

    def forward(self, picture):
        return self.layers(picture).flatten().sigmoid()


def real_pictures():
    wave = torch.linspace(0, 6, 64).sin().view(1, 1, 8, 8)
    return wave + 0.1 * torch.randn(BATCH, 1, 8, 8)


netG, netD = Generator().apply(initialise), Discriminator().apply(initialise)
optG, optD = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (netG, netD))
bce = nn.BCELoss()
ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
fixed = torch.randn(4, LATENT)

for it in range(36):
    netD.zero_grad()
    errD_real = bce(netD(real_pictures()), ones)
    errD_real.backward()
    fake = netG(torch.randn(BATCH, LATENT))
    errD_fake = bce(netD(fake.detach()), zeros)
    errD_fake.backward()
    optD.step()

    netG.zero_grad()
    errG = bce(netD(fake), ones)
    errG.backward()
    optG.step()

    if it % 12 == 0:
        print(it, f"D {(errD_real + errD_fake).item():.4f}", f"G {errG.item():.4f}")
        with torch.no_grad():
            netG(fixed)

print("weights", digest(netG, netD))
