"""A list of losses for a curve: each entry keeps its graph."""

# finds: warning loss_list

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(1)


class History:
    def __init__(self) -> None:
        self.losses: list = []

    def add(self, loss: Tensor) -> None:
        # mended: self.losses.append(loss.item())
        self.losses.append(loss)


def main() -> None:
    torch.manual_seed(0)
    model, history = Regressor(), History()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(20):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x.sum(1))
        loss.backward()
        optimizer.step()
        history.add(loss)
    print(f"last losses: {[float(loss) for loss in history.losses[-3:]]}")


if __name__ == "__main__":
    main()
