"""A WGAN with clipped weights: five steps of the critic, each of which runs back through the generator for nothing."""

# finds: warning undetached_fake

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    def __init__(self, latent: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(latent, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def main() -> None:
    torch.manual_seed(0)
    generator, critic = Generator(4), Critic()
    optimizer_G = torch.optim.RMSprop(generator.parameters(), lr=5e-4)
    optimizer_C = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
    for i in range(30):
        real = torch.randn(16, 2) + 2
        z = torch.randn(16, 4)
        optimizer_C.zero_grad()
        # mended: fake = generator(z).detach()
        fake = generator(z)
        loss_C = critic(fake).mean() - critic(real).mean()  # here
        loss_C.backward()
        optimizer_C.step()
        for p in critic.parameters():
            p.data.clamp_(-0.01, 0.01)
        if i % 5 == 0:
            optimizer_G.zero_grad()
            loss_G = -critic(generator(torch.randn(16, 4))).mean()
            loss_G.backward()
            optimizer_G.step()
            optimizer_G.zero_grad()


if __name__ == "__main__":
    main()
