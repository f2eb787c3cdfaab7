"""A diffusion model of points, with a moving average of the weights for sampling."""
# flow: loss -> net

import copy

import torch
from digest import digest
from torch import nn


class Denoiser(nn.Module):
    def __init__(self, steps, width=24):
        super().__init__()
        self.time = nn.Embedding(steps, width)
        self.inp = nn.Linear(2, width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, t):
        return self.out(self.inp(x) + self.time(t))


class GaussianDiffusion:
    def __init__(self, steps):
        self.steps = steps
        self.betas = torch.linspace(1e-3, 0.2, steps)
        self.alphas = 1 - self.betas
        self.alpha_bar = self.alphas.cumprod(0)

    def q_sample(self, x0, t, noise):
        a = self.alpha_bar[t].unsqueeze(1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def p_losses(self, model, x0):
        t = torch.randint(0, self.steps, (len(x0),))
        noise = torch.randn_like(x0)
        return (noise - model(self.q_sample(x0, t, noise), t)).pow(2).mean()

    @torch.inference_mode()
    def sample(self, model, count):
        x = torch.randn(count, 2)
        for t in reversed(range(self.steps)):
            eps = model(x, torch.full((count,), t))
            x = (x - self.betas[t] / (1 - self.alpha_bar[t]).sqrt() * eps) / self.alphas[t].sqrt()
            if t > 0:
                x = x + self.betas[t].sqrt() * torch.randn_like(x)
        return x


@torch.no_grad()
def update_ema(ema, model, decay=0.95):
    for name, param in ema.named_parameters():
        param.mul_(decay).add_(model.get_parameter(name), alpha=1 - decay)


def main():
    torch.manual_seed(19)
    diffusion = GaussianDiffusion(12)
    net = Denoiser(diffusion.steps)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(45):
        angle = 6.28 * torch.rand(64)
        x0 = torch.stack([angle.cos(), angle.sin()], 1)
        loss = diffusion.p_losses(net, x0)
        opt.zero_grad()
        loss.backward()
        opt.step()
        update_ema(ema, net)
        if step % 15 == 0:
            radius = diffusion.sample(ema, 32).norm(dim=1).mean().item()
            print(f"step {step} loss {loss.item():.4f} radius {radius:.4f}")
    print("weights", digest(net, ema))


if __name__ == "__main__":
    main()
