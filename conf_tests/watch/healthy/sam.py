"""Sharpness-aware minimisation: a step uphill, a second backward there, and the real step from where it began."""
# fast
# flow: loss -> hidden, out; second_loss -> hidden, out

import torch
from digest import digest
from torch import nn


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure=None):
        raise NotImplementedError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


torch.manual_seed(61)
model = Model()
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base_optimizer, 15, 0.3)
rule = torch.randn(6, 3)
for step in range(34):
    inputs = torch.randn(32, 6)
    targets = (inputs @ rule).argmax(1)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.first_step(zero_grad=True)
    second_loss = nn.functional.cross_entropy(model(inputs), targets)
    second_loss.backward()
    optimizer.second_step(zero_grad=True)
    scheduler.step()
    if step % 10 == 0:
        print(f"{step} {loss.item():.4f} {second_loss.item():.4f}")
print("weights", digest(model))
