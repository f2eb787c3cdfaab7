"""An autoencoder whose gradients are zeroed between backward and step."""

# finds: error empty_step

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    # mended: optimizer.zero_grad()
    # mended: loss.backward()
    loss.backward()
    # mended:
    optimizer.zero_grad()
    optimizer.step()  # here


def main() -> None:
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(2):
        total = 0.0
        for _ in range(4):
            x = torch.rand(16, 16)
            loss = F.mse_loss(model(x), x)
            update(loss, optimizer)
            total += loss.item()
        print(f"epoch {epoch}: {total / 4:.4f}")


if __name__ == "__main__":
    main()
