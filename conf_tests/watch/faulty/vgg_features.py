"""Fast style transfer: the loss looks through a VGG in eval mode that nobody froze."""

# finds: warning unfrozen_features

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Features(nn.Module):
    """Stands for a pretrained VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.slice2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.slice1(x)
        return low, self.slice2(low)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
        self.up = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def main() -> None:
    torch.manual_seed(0)
    # mended: vgg = Features().eval().requires_grad_(False)
    vgg = Features().eval()
    transformer = Transformer()
    optimizer = torch.optim.Adam(transformer.parameters(), lr=1e-3)
    style = [gram(f).detach() for f in vgg(torch.rand(1, 3, 16, 16))]
    for _ in range(8):
        x = torch.rand(2, 3, 16, 16)
        optimizer.zero_grad()
        y = transformer(x)
        features_y, features_x = vgg(y), vgg(x)
        content_loss = F.mse_loss(features_y[1], features_x[1].detach())
        style_loss = sum(F.mse_loss(gram(f), s.expand(2, -1, -1)) for f, s in zip(features_y, style, strict=True))
        total_loss = content_loss + 10 * style_loss
        total_loss.backward()  # here
        optimizer.step()


if __name__ == "__main__":
    main()
