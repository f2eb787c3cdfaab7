"""InfoGAN: three losses and three optimisers; the third holds both networks again, on purpose."""
# flow: d_loss -> discriminator; g_loss -> generator, discriminator; info_loss -> generator, discriminator
# cut: d_loss -> generator

import itertools

import torch
from digest import digest
from torch import nn

latent_dim, n_classes, batch_size = 4, 3, 16


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent_dim + n_classes, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, noise, labels):
        return self.net(torch.cat((noise, labels), -1))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2))
        self.adv_layer = nn.Linear(24, 1)
        self.aux_layer = nn.Linear(24, n_classes)

    def forward(self, x):
        out = self.trunk(x)
        return self.adv_layer(out), self.aux_layer(out)


def one_hot(labels):
    return torch.eye(n_classes)[labels]


torch.manual_seed(33)
adversarial_loss, categorical_loss = nn.MSELoss(), nn.CrossEntropyLoss()
generator, discriminator = Generator(), Discriminator()
optimizer_G = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
optimizer_info = torch.optim.Adam(itertools.chain(generator.parameters(), discriminator.parameters()), lr=2e-3)
valid, fake = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)
for i in range(34):
    real = torch.randn(batch_size, 2) * 0.2 + 2 * torch.randint(0, 3, (batch_size, 1))

    optimizer_G.zero_grad()
    z = torch.randn(batch_size, latent_dim)
    gen = generator(z, one_hot(torch.randint(n_classes, (batch_size,))))
    validity, _ = discriminator(gen)
    g_loss = adversarial_loss(validity, valid)
    g_loss.backward()
    optimizer_G.step()

    optimizer_D.zero_grad()
    d_real_loss = adversarial_loss(discriminator(real)[0], valid)
    d_fake_loss = adversarial_loss(discriminator(gen.detach())[0], fake)
    d_loss = (d_real_loss + d_fake_loss) / 2
    d_loss.backward()
    optimizer_D.step()

    optimizer_info.zero_grad()
    sampled = torch.randint(n_classes, (batch_size,))
    _, pred_label = discriminator(generator(torch.randn(batch_size, latent_dim), one_hot(sampled)))
    info_loss = categorical_loss(pred_label, sampled)
    info_loss.backward()
    optimizer_info.step()
    if i % 11 == 0:
        print(f"[{i}] D {d_loss.item():.4f} G {g_loss.item():.4f} info {info_loss.item():.4f}")
print("weights", digest(generator, discriminator))
