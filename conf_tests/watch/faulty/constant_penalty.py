"""A WGAN-GP whose gradient penalty is a number: ``create_graph`` was left out."""

# finds: error detached_penalty

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    alpha = torch.rand(len(real), 1)
    between = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    scores = critic(between)
    # mended: (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    (gradient,) = torch.autograd.grad(scores.sum(), between)  # here
    return (gradient.norm(2, dim=1) - 1).square().mean()


def main() -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    critic = Critic()
    g_opt = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.9))
    c_opt = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for step in range(12):
        real = torch.randn(16, 2) + 2
        fake = generator(torch.randn(16, 4)).detach()
        c_loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)
        c_opt.zero_grad()
        c_loss.backward()
        c_opt.step()
        if step % 3 == 2:
            g_loss = -critic(generator(torch.randn(16, 4))).mean()
            g_opt.zero_grad()
            g_loss.backward()
            g_opt.step()


if __name__ == "__main__":
    main()
