"""Gradient surgery after Yu et al. (2020): the tasks' gradients by autograd.grad, projected and written by hand."""
# flow: task_loss -> trunk, heads

import torch
from digest import digest
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 1)])

    def forward(self, x):
        h = self.trunk(x)
        return [head(h).squeeze(1) for head in self.heads]


def flat_gradient(task_loss, params):
    grads = torch.autograd.grad(task_loss, params, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads, strict=True)])


def project(grads):
    out = []
    for i, g in enumerate(grads):
        g = g.clone()
        for j, other in enumerate(grads):
            dot = g @ other
            if i != j and dot < 0:
                g -= dot / other.norm().square() * other
        out.append(g)
    return sum(out)


def main():
    torch.manual_seed(71)
    net = Net()
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for step in range(36):
        x = torch.randn(32, 5)
        targets = [x[:, 0] * x[:, 1], x[:, 0] - x[:, 2]]
        losses = [nn.functional.mse_loss(out, y) for out, y in zip(net(x), targets, strict=True)]
        merged = project([flat_gradient(task_loss, params) for task_loss in losses])
        optimizer.zero_grad()
        for p, g in zip(params, merged.split([p.numel() for p in params]), strict=True):
            p.grad = g.view_as(p).clone()
        optimizer.step()
        if step % 12 == 0:
            print(step, *(f"{loss.item():.4f}" for loss in losses))
    print("weights", digest(net))


if __name__ == "__main__":
    main()
