"""Networks from images to features, as stages from the input up: a small ResNet, and torchvision's and timm's by name.

The embedded one is the residual network with batch normalisation of He et al. 2016, arXiv:1512.03385, figure 3 and
section 4.2, with one block a stage and a quarter of the pixels from the first stage on.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: (B, in, H, W) to (B, out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(hidden + self.shortcut(x))


def resnet(channels: int, width: int) -> nn.Sequential:
    """Images (B, C, H, W) to features (B, 4 width), in five stages."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            ),
            stage1=Block(width, width, 1),
            stage2=Block(width, 2 * width, 2),
            stage3=Block(2 * width, 4 * width, 2),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
    )


def torchvision_backbone(name: str, channels: int, weights: str | None) -> nn.Module:
    """A classifier of torchvision's, of 3 channels, with an identity for its last linear layer."""
    models = optional("torchvision.models", f"torchvision/{name}")
    model = models.get_model(name, weights=weights)
    last, _ = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    owner, _, attribute = last.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Identity())
    return model


def timm_backbone(name: str, channels: int, weights: str | None) -> nn.Module:
    """A model of timm's without its classifier."""
    timm = optional("timm", f"timm/{name}")
    return timm.create_model(name, pretrained=weights is not None, num_classes=0, in_chans=channels)


def optional(module: str, backbone: str) -> Any:
    """A module of the ``vision`` extra.

    Raises:
        ValueError: it is not installed.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"recipe.backbone={backbone}: needs {package}; pip install 'stopgrad[vision]', or choose resnet"
        ) from None
    return importlib.import_module(module)


def backbone(name: str, shape: Sequence[int], width: int, weights: str | None = None) -> tuple[nn.Sequential, int]:
    """A backbone as stages, and the number F of its features: images (B, C, H, W) to (B, F).

    Args:
        name: ``resnet``, ``torchvision/NAME`` or ``timm/NAME``; the last two are one stage.
        shape: (C, H, W) of an image.
        width: channels of the ResNet's first stage.
        weights: None for random ones, else those that the library downloads (``DEFAULT``).

    Raises:
        ValueError: no such backbone, its library is not installed, or it cannot take images of this shape.
    """
    library, _, model = name.rpartition("/")
    if name == "resnet":
        if weights is not None:
            raise ValueError(f"recipe.weights={weights}: {name} has none to download; choose null")
        stages = resnet(shape[0], width)
    elif library in ("torchvision", "timm"):
        build = torchvision_backbone if library == "torchvision" else timm_backbone
        try:
            stages = nn.Sequential(OrderedDict(model=build(model, shape[0], weights)))
        except RuntimeError as error:  # timm: no such model, or no weights for it
            raise ValueError(f"recipe.backbone={name}: {error}") from None
    else:
        raise ValueError(f"recipe.backbone={name}: choose one of resnet, torchvision/NAME, timm/NAME")
    return stages, num_features(name, stages, shape)


@torch.no_grad()
def num_features(name: str, stages: nn.Module, shape: Sequence[int]) -> int:
    """F, from a run on a blank image.

    Raises:
        ValueError: the backbone cannot take images of this shape.
    """
    try:
        features = stages.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"recipe.backbone={name}: cannot take images of {list(shape)} ({reason})") from None
    stages.train()
    if features.ndim != 2:
        raise ValueError(f"recipe.backbone={name}: gives {list(features.shape[1:])} for an image; needs one vector")
    return features.shape[1]
