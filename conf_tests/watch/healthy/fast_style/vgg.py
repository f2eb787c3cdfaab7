from collections import namedtuple

import torch

Outputs = namedtuple("Outputs", ["relu1", "relu2"])


class Features(torch.nn.Module):
    """A stand-in for VGG: frozen, whatever its seed gave."""

    def __init__(self, requires_grad=False):
        super().__init__()
        self.slice1 = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU())
        self.slice2 = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Conv2d(6, 8, 3, padding=1), torch.nn.ReLU())
        if not requires_grad:
            for param in self.parameters():
                param.requires_grad = False

    def forward(self, X):
        h1 = self.slice1(X)
        return Outputs(h1, self.slice2(h1))
