"""A GAN with spectral normalisation, hinge losses and a moving average of the generator by swa_utils."""
# flow: loss_d -> discriminator; loss_g -> generator, discriminator
# cut: loss_d -> generator

import torch
import torch.nn.functional as F
from digest import digest
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_generator():
    return nn.Sequential(nn.Linear(4, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))


def make_discriminator():
    return nn.Sequential(spectral_norm(nn.Linear(2, 24)), nn.LeakyReLU(0.1), spectral_norm(nn.Linear(24, 1)))


def train_discriminator(generator, discriminator, optimizer, real):
    with torch.no_grad():
        fake = generator(torch.randn(len(real), 4))
    loss_d = F.relu(1 - discriminator(real)).mean() + F.relu(1 + discriminator(fake)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss_d.backward()
    optimizer.step()
    return loss_d.item()


def train_generator(generator, discriminator, optimizer, size):
    loss_g = -discriminator(generator(torch.randn(size, 4))).mean()
    optimizer.zero_grad(set_to_none=True)
    loss_g.backward()
    optimizer.step()
    return loss_g.item()


def main():
    torch.manual_seed(81)
    generator, discriminator = make_generator(), make_discriminator()
    ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optim_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    optim_d = torch.optim.Adam(discriminator.parameters(), lr=4e-3, betas=(0.0, 0.9))
    for step in range(35):
        d = train_discriminator(generator, discriminator, optim_d, 2 + 0.5 * torch.randn(32, 2))
        g = train_generator(generator, discriminator, optim_g, 32)
        ema.update_parameters(generator)
        if step % 10 == 0:
            ema.eval()
            with torch.no_grad():
                print(f"{step} d {d:.4f} g {g:.4f} mean {ema(torch.randn(64, 4)).mean().item():.4f}")
    print("weights", digest(generator, discriminator, ema))


if __name__ == "__main__":
    main()
