"""A fall in steps of a solver, until an event whose class has its own idea of ``parameters()``; the solver wraps it."""
# flow: loss -> dynamics, event

import torch
from digest import digest
from torch import nn


class Dynamics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gravity, self.drag = nn.Parameter(torch.tensor(9.0)), nn.Linear(1, 1)

    def forward(self, velocity: torch.Tensor) -> torch.Tensor:
        return -self.gravity - self.drag(velocity)


class Event(nn.Module):
    """Zero on the ground."""

    def __init__(self) -> None:
        super().__init__()
        self.ground = nn.Parameter(torch.tensor(0.5))

    def parameters(self) -> list[nn.Parameter]:
        return [self.ground]

    def forward(self, height: torch.Tensor) -> torch.Tensor:
        return height - self.ground


class Backwards(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.inner(x)


def fall(dynamics: nn.Module, velocity: torch.Tensor, loss_of) -> torch.Tensor:
    dynamics = Backwards(dynamics)
    for _ in range(4):
        velocity = velocity - 0.1 * dynamics(velocity)
    loss = loss_of(velocity)
    loss.backward()
    return loss


def main() -> None:
    torch.manual_seed(8)
    dynamics, event = Dynamics(), Event()
    optimizer = torch.optim.Adam([*dynamics.parameters(), *event.parameters()], lr=1e-2)
    for step in range(32):
        velocity = torch.randn(8, 1)
        optimizer.zero_grad()
        loss = fall(dynamics, velocity, lambda end: event(1 + end).square().mean())
        optimizer.step()
        if step % 16 == 15:
            print(step, f"{loss.item():.4f}")
    print("weights", digest(dynamics, event.ground))


if __name__ == "__main__":
    main()
