"""A trainer and an average of the weights, which holds the model that it follows as a module of its own."""
# flow: loss -> model

import copy

import torch
from digest import digest
from torch import nn


class Average(nn.Module):
    """Calls for the average, beside the model that it is of."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        super().__init__()
        self.model, self.decay = model, decay
        self.smooth = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        for slow, fast in zip(self.smooth.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.smooth(x)


class Trainer:
    def __init__(self) -> None:
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.SiLU()) for _ in range(3)]
        self.model = nn.Sequential(*blocks, nn.Linear(6, 6))
        self.ema = Average(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)

    def train(self, steps: int) -> None:
        for step in range(steps):
            noise, x = torch.randn(8, 6), torch.randn(8, 6).cumsum(1)
            loss = (self.model(x + noise) - noise).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update()
            if step % 10 == 9:
                self.ema.eval()
                with torch.no_grad():
                    print(step, f"{self.ema(x).square().mean():.4f}")


if __name__ == "__main__":
    torch.manual_seed(5)
    trainer = Trainer()
    trainer.train(32)
    print("weights", digest(trainer.model, trainer.ema.smooth))
