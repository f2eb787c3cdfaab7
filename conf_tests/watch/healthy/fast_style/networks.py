from torch import nn


def padded(inside, outside, stride=1):
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(inside, outside, 3, stride))


class Transformer(nn.Module):
    """From picture to picture, by way of half the size."""

    def __init__(self, width=6):
        super().__init__()
        self.down = padded(3, width, stride=2)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.inner = padded(width, width)
        self.up = nn.ConvTranspose2d(width, 3, 2, 2)

    def forward(self, picture):
        h = self.norm(self.down(picture)).relu()
        return self.up(h + self.inner(h).relu())


class Features(nn.Module):
    """A stand-in for VGG: frozen, whatever its seed gave."""

    def __init__(self):
        super().__init__()
        self.shallow = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        for param in self.parameters():
            param.requires_grad = False

    def forward(self, picture):
        shallow = self.shallow(picture)
        return shallow, self.deep(shallow)
