"""Random views of images, and what the neighbours of an image say it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def warped(
    images: Tensor, turn: float, shift: float, scale: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Images (N, C, H, W) in [-1, 1], each turned, shifted and scaled at random; what comes in from outside is -1.

    Args:
        turn: the most, in radians, either way.
        shift: the most, along either axis, as a share of half the image.
        scale: the most that is added to a factor of 1, or taken off it.
    """
    draws = (2 * torch.rand(len(images), 4, generator=generator) - 1).to(images)
    angle, factor, offset = turn * draws[:, 0], 1 + scale * draws[:, 1], shift * draws[:, 2:]
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    maps = torch.cat([factor[:, None, None] * rotation, offset[:, :, None]], 2)  # (N, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def nearest_label(asked: Tensor, known: Tensor, labels: Tensor, neighbours: int = 5) -> Tensor:
    """The commonest label (N,) among the nearest of known features (M, F), by the cosine; ties go to the lowest label.

    Args:
        asked: features (N, F).
        labels: of the known ones (M,).
    """
    similar = F.normalize(asked, dim=1) @ F.normalize(known, dim=1).T
    return labels[similar.topk(neighbours).indices].mode(1).values
