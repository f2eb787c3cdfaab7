"""A physics-informed network for u'' = -u: derivatives by autograd.grad with create_graph, Adam and then LBFGS."""
# fast
# flow: loss -> first, second, last

import torch
from digest import digest
from torch import nn


class Field(nn.Module):
    def __init__(self, width=10):
        super().__init__()
        self.first = nn.Linear(1, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, t):
        return self.last(self.second(self.first(t).tanh()).tanh())


def derivative(u, t):
    return torch.autograd.grad(u.sum(), t, create_graph=True)[0]


class Solver:
    def __init__(self, points=24):
        self.times = torch.linspace(0, 3, points)[:, None].requires_grad_()
        self.field = Field()
        self.adam = torch.optim.Adam(self.field.parameters(), lr=1e-2)
        self.lbfgs = torch.optim.LBFGS(self.field.parameters(), max_iter=30, line_search_fn="strong_wolfe")
        self.calls = 0

    def loss(self):
        """The equation's residual, and the start: u(0) = 1 with no slope."""
        u = self.field(self.times)
        slope = derivative(u, self.times)
        residual = derivative(slope, self.times) + u
        return residual.square().mean() + (u[0] - 1).square().sum() + slope[0].square().sum()

    def closure(self):
        self.lbfgs.zero_grad()
        loss = self.loss()
        loss.backward()
        self.calls += 1
        if self.calls % 10 == 0:
            print(f"lbfgs {self.calls}: {loss.item():.4e}")
        return loss

    def solve(self, steps):
        for step in range(steps):
            loss = self.loss()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            if step % 10 == 0:
                print(f"adam {step}: {loss.item():.4e}")
        self.lbfgs.step(self.closure)


if __name__ == "__main__":
    torch.manual_seed(1234)
    solver = Solver()
    solver.solve(30)
    with torch.no_grad():
        print(f"u(1) = {solver.field(torch.ones(1, 1)).item():.5f}")
    print("weights", digest(solver.field))
