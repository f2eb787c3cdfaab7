"""WGAN with gradient penalty: five critic steps to one of the generator."""
# flow: d_loss -> discriminator; g_loss -> generator, discriminator
# cut: d_loss -> generator

import argparse
from itertools import pairwise

import torch
import torch.nn as nn
from digest import digest

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--latent", type=int, default=6)
parser.add_argument("--critic-steps", type=int, default=5)
parser.add_argument("--penalty", type=float, default=10.0)
opt = parser.parse_args()
torch.manual_seed(4)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        layers, sizes = [], (opt.latent, 16, 16)
        for inside, outside in pairwise(sizes):
            layers += [nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.LeakyReLU(0.2, inplace=True)]
        self.model = nn.Sequential(*layers, nn.Linear(16, 36), nn.Tanh())

    def forward(self, z):
        return self.model(z).view(-1, 1, 6, 6)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))

    def forward(self, picture):
        return self.model(picture).squeeze(1)


def gradient_penalty(critic, real, fake):
    """How far the slope between real and fake lies from one."""
    between = torch.lerp(real, fake, torch.rand(len(real), 1, 1, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


generator, discriminator = Generator(), Discriminator()
pictures = torch.randn(24 * opt.batch, 1, 6, 6).cumsum(-1).tanh()
loader = torch.utils.data.DataLoader(pictures, batch_size=opt.batch, shuffle=True)
optimizer_G = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
for epoch in range(opt.epochs):
    for number, real in enumerate(loader):
        optimizer_D.zero_grad()
        z = torch.randn(len(real), opt.latent)
        fake = generator(z).detach()
        d_loss = discriminator(fake).mean() - discriminator(real).mean()
        d_loss = d_loss + opt.penalty * gradient_penalty(discriminator, real, fake)
        d_loss.backward()
        optimizer_D.step()

        optimizer_G.zero_grad()
        if number % opt.critic_steps == 0:
            g_loss = -discriminator(generator(z)).mean()
            g_loss.backward()
            optimizer_G.step()
            print(f"epoch {epoch}, batch {number}: D {d_loss.item():.5f}, G {g_loss.item():.5f}")
print("weights", digest(generator, discriminator))
