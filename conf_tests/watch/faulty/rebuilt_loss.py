"""The losses of several targets are summed as numbers, and made a tensor again that requires grad."""

# finds: error rebuilt_loss
# also: empty_step

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Forecaster(nn.Module):
    def __init__(self, targets: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(targets))

    def forward(self, series: Tensor) -> list[Tensor]:
        _, last = self.rnn(series)
        return [head(last[0]) for head in self.heads]


def total_loss(outputs: list[Tensor], wanted: Tensor) -> Tensor:
    losses = [F.mse_loss(output.squeeze(1), wanted[:, i]) for i, output in enumerate(outputs)]
    # mended: return torch.stack(losses).sum()
    return torch.tensor(sum(loss.item() for loss in losses), requires_grad=True)


def main() -> None:
    torch.manual_seed(0)
    model = Forecaster(targets=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        series = torch.randn(8, 10, 3)
        wanted = series.mean(1)[:, :2]
        optimizer.zero_grad()
        loss = total_loss(model(series), wanted)
        loss.backward()  # here
        optimizer.step()


if __name__ == "__main__":
    main()
