"""Distillation: the optimiser holds the whole distiller, and the teacher learns to agree with its student."""

# finds: error teacher_trains

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


class Distiller(nn.Module):
    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.teacher, self.student = network(16), network(16)
        self.teacher.eval()
        self.temperature = temperature

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # mended: with torch.no_grad():
        # mended:     taught = self.teacher(x)
        taught = self.teacher(x)
        return self.student(x), taught

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        said, taught = (logits / self.temperature for logits in self(x))
        soft = F.kl_div(said.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)
        return F.cross_entropy(said, y) + soft


def main() -> None:
    torch.manual_seed(0)
    distiller = Distiller()
    # mended: optimizer = torch.optim.Adam(distiller.student.parameters(), lr=1e-3)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3)
    for _ in range(8):
        loss = distiller.loss(torch.randn(16, 8), torch.randint(4, (16,)))
        optimizer.zero_grad()
        loss.backward()  # here
        optimizer.step()


if __name__ == "__main__":
    main()
