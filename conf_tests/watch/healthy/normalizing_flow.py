"""A flow of affine couplings, trained by exact likelihood; its base is a distribution with buffers."""
# flow: loss -> flow

import torch
from digest import digest
from torch import nn
from torch.distributions import Independent, Normal


class Coupling(nn.Module):
    def __init__(self, flip, width=16):
        super().__init__()
        self.flip = flip
        self.s = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1), nn.Tanh())
        self.t = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        if self.flip:
            a, b = b, a
        s = self.s(a)
        b = b * s.exp() + self.t(a)
        return torch.cat([b, a] if self.flip else [a, b], 1), s.sum(1)

    def inverse(self, z):
        a, b = z.chunk(2, 1)
        if self.flip:
            a, b = b, a
        b = (b - self.t(a)) * (-self.s(a)).exp()
        return torch.cat([b, a] if self.flip else [a, b], 1)


class Flow(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(flip=bool(i % 2)) for i in range(depth))
        self.register_buffer("loc", torch.zeros(2))
        self.register_buffer("scale", torch.ones(2))

    @property
    def base(self):
        return Independent(Normal(self.loc, self.scale), 1)

    def log_prob(self, x):
        total = 0.0
        for coupling in self.couplings:
            x, log_det = coupling(x)
            total = total + log_det
        return self.base.log_prob(x) + total

    @torch.no_grad()
    def sample(self, count):
        z = self.base.sample((count,))
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z)
        return z


torch.manual_seed(29)
flow = Flow()
optim = torch.optim.Adamax(flow.parameters(), lr=1e-2)
for it in range(40):
    x = torch.randn(64, 2)
    x = torch.stack([x[:, 0], x[:, 0].square() + 0.3 * x[:, 1]], 1)
    optim.zero_grad(set_to_none=False)
    loss = -flow.log_prob(x).mean()
    if not (torch.isnan(loss) | torch.isinf(loss)):
        loss.backward()
        optim.step()
    if it % 10 == 0:
        print(f"{it:3d} nll {loss.item():.4f} sample mean {flow.sample(100).mean().item():.4f}")
print("weights", digest(flow))
