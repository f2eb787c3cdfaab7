import torch.nn as nn


class ResidualBlock(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(features, features, 3),
            nn.InstanceNorm2d(features),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(features, features, 3),
            nn.InstanceNorm2d(features),
        )

    def forward(self, x):
        return x + self.block(x)


def define_G(features=4):
    return nn.Sequential(
        nn.Conv2d(1, features, 3, padding=1),
        nn.ReLU(inplace=True),
        ResidualBlock(features),
        nn.Conv2d(features, 1, 3, padding=1),
        nn.Tanh(),
    )


def define_D(features=4):
    return nn.Sequential(
        nn.Conv2d(1, features, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(features, 1, 4, padding=1),
    )


def set_requires_grad(nets, requires_grad=False):
    for net in nets if isinstance(nets, list) else [nets]:
        for param in net.parameters():
            param.requires_grad = requires_grad
