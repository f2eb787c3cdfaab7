import torch.nn as nn


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.norm = nn.InstanceNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.second(self.norm(self.first(x)).relu()))


def translator(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), Residual(width), nn.Conv2d(width, 1, 3, padding=1), nn.Tanh()
    )


def judge(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 4, padding=1))


def freeze(*nets, frozen=True):
    for net in nets:
        for p in net.parameters():
            p.requires_grad = not frozen
