from collections import OrderedDict

import torch.nn as nn

from domain.functions import Reverse


class DANN(nn.Module):
    def __init__(self):
        super().__init__()
        layers = OrderedDict(conv=nn.Conv2d(1, 6, 3), norm=nn.BatchNorm2d(6), relu=nn.ReLU(), flat=nn.Flatten())
        self.feature = nn.Sequential(layers)
        self.label_head = nn.Linear(96, 10)
        self.domain_head = nn.Linear(96, 2)

    def forward(self, pictures, strength):
        h = self.feature(pictures)
        return self.label_head(h), self.domain_head(Reverse.apply(h, strength))
