"""A domain-adaptation pair: two classifiers share their first blocks, and one Adam is to train both."""

# finds: error listed_twice

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    def __init__(self, blocks: nn.Module, classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def batches(count: int, classes: int):
    for _ in range(count):
        y = torch.randint(classes, (32,))
        yield torch.randn(32, 8) + y[:, None], y


def main() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    source, target = Classifier(blocks, 4), Classifier(blocks, 3)
    # mended: parameters = itertools.chain(source.parameters(), target.head.parameters())
    parameters = itertools.chain(source.parameters(), target.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)  # here
    for (x_source, y_source), (x_target, y_target) in zip(batches(10, 4), batches(10, 3), strict=True):
        loss = F.cross_entropy(source(x_source), y_source) + F.cross_entropy(target(x_target), y_target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
