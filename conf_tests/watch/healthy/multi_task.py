"""Two heads on one trunk and one summed loss, with learned weights of the tasks."""
# flow: loss -> trunk, depth_head, class_head, log_vars

import torch
from digest import digest
from torch import nn


class MultiTaskNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 24), nn.ReLU())
        self.depth_head = nn.Linear(24, 1)
        self.class_head = nn.Linear(24, 4)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        features = self.trunk(x)
        return {"depth": self.depth_head(features).squeeze(-1), "class": self.class_head(features)}


class MultiTaskLoss:
    def __init__(self, log_vars):
        self.log_vars = log_vars
        self.terms = {"depth": nn.L1Loss(), "class": nn.CrossEntropyLoss()}

    def __call__(self, outputs, targets):
        losses = {name: criterion(outputs[name], targets[name]) for name, criterion in self.terms.items()}
        total = sum(torch.exp(-s) * loss + s for s, loss in zip(self.log_vars, losses.values(), strict=True))
        return total, {name: value.detach() for name, value in losses.items()}


def batches(count):
    rule = torch.randn(8, 4)
    for _ in range(count):
        x = torch.randn(16, 8)
        yield x, {"depth": x.abs().sum(1), "class": (x @ rule).argmax(1)}


torch.manual_seed(14)
net = MultiTaskNet()
criterion = MultiTaskLoss(net.log_vars)
optimizer = torch.optim.NAdam(net.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=40)
for step, (x, targets) in enumerate(batches(40)):
    loss, parts = criterion(net(x), targets)
    loss.backward()
    optimizer.step()
    scheduler.step()
    net.zero_grad()
    if step % 10 == 0:
        print(step, {name: f"{value.item():.4f}" for name, value in parts.items()})
print("weights", digest(net))
