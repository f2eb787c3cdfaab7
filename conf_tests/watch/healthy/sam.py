"""Sharpness-aware minimisation: a way uphill, a second backward there, and the real step from where it began."""
# fast
# flow: loss -> hidden, out; second_loss -> hidden, out

import torch
from digest import digest
from torch import nn


class SAM(torch.optim.Optimizer):
    """Wraps an optimiser of the same parameters: ``climb``, then ``descend``."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    def each(self):
        return [(p, group["rho"]) for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def climb(self):
        length = torch.nn.utils.get_total_norm([p.grad for p, _ in self.each()]) + 1e-12
        for p, rho in self.each():
            self.state[p]["here"] = p.detach().clone()
            p.add_(p.grad, alpha=float(rho / length))
        self.zero_grad()

    @torch.no_grad()
    def descend(self):
        for p, _ in self.each():
            p.copy_(self.state[p]["here"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError("climb and descend")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.hidden(x).relu())


torch.manual_seed(61)
model = Model()
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base, 15, 0.3)
rule = torch.randn(6, 3)
for step in range(34):
    x = torch.randn(32, 6)
    y = (x @ rule).argmax(1)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.climb()
    second_loss = nn.functional.cross_entropy(model(x), y)
    second_loss.backward()
    optimizer.descend()
    scheduler.step()
    if step % 10 == 0:
        print(f"{step}: {loss.item():.4f}, uphill {second_loss.item():.4f}")
print("weights", digest(model))
