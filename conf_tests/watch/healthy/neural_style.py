"""Style transfer by optimising the picture alone, through frozen features that keep their losses as they run."""
# fast
# flow: loss -> picture

import torch
import torch.nn as nn
from digest import digest
from torch.nn.functional import mse_loss


def gram(features):
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


class Tap(nn.Module):
    """Passes its input on, and keeps how far a statistic of it lies from its first one."""

    def __init__(self, statistic, example):
        super().__init__()
        self.statistic = statistic
        self.target = statistic(example).detach()
        self.loss = None

    def forward(self, features):
        self.loss = mse_loss(self.statistic(features), self.target)
        return features


def tapped(features, style, content):
    """The feature layers, with a style tap behind each convolution and one for content at the end."""
    net, styles = nn.Sequential(), []
    for layer in features.children():
        net.append(nn.ReLU() if isinstance(layer, nn.ReLU) else layer)
        if isinstance(layer, nn.Conv2d):
            styles.append(Tap(gram, net(style)))
            net.append(styles[-1])
    like = Tap(lambda f: f, net(content))
    return net.append(like), styles, like


def transfer(features, content, style, rounds=30):
    net, styles, like = tapped(features, style, content)
    net.eval()
    net.requires_grad_(False)
    picture = content.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([picture], max_iter=2)
    calls = 0

    def closure():
        nonlocal calls
        with torch.no_grad():
            picture.clamp_(0, 1)
        optimizer.zero_grad()
        net(picture)
        style_loss = sum(tap.loss for tap in styles)
        loss = 1e4 * style_loss + like.loss
        loss.backward()
        calls += 1
        if calls % 10 == 0:
            print(f"{calls}: style {style_loss.item():.3e} content {like.loss.item():.3e}")
        return loss

    for _ in range(rounds):
        optimizer.step(closure)
    return picture.detach().clamp(0, 1)


torch.manual_seed(5)
pretrained = nn.Sequential(
    nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
).eval()
print("weights", digest(transfer(pretrained, torch.rand(1, 3, 12, 12), torch.rand(1, 3, 12, 12))))
