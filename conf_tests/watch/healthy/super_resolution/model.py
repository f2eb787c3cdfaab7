import torch.nn as nn


class SubPixel(nn.Module):
    """Sub-pixel convolution after Shi et al. (2016)."""

    def __init__(self, factor, width=8):
        super().__init__()
        self.first = nn.Conv2d(1, width, 5, padding="same")
        self.second = nn.Conv2d(width, width, 3, padding="same")
        self.last = nn.Conv2d(width, factor * factor, 3, padding="same")
        self.shuffle = nn.PixelShuffle(factor)
        for conv in (self.first, self.second, self.last):
            nn.init.orthogonal_(conv.weight)

    def forward(self, small):
        return self.shuffle(self.last(self.second(self.first(small).relu()).relu()))
