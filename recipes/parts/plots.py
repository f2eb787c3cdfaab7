"""Small pictures, drawn without a plotting library: points in the plane, and bars."""

from __future__ import annotations

import torch
from torch import Tensor

# Ten that can be told apart, as 0xRRGGBB: what has no label takes the first.
COLOURS = (0x1F77B4, 0xFF7F0E, 0x2CA02C, 0xD62728, 0x9467BD, 0x8C564B, 0xE377C2, 0x7F7F7F, 0xBCBD22, 0x17BECF)


def scatter(points: Tensor, labels: Tensor | None = None, *, pixels: int = 192) -> Tensor:
    """One picture (1, 3, pixels, pixels) in [-1, 1] of points (N, 2) in [-1, 1]^2, y upwards, coloured by label (N,).

    A point is a square of three pixels; one from outside lies at the edge.
    """
    centres = ((points.detach().cpu().clamp(-1, 1) + 1) / 2 * (pixels - 3)).round().long() + 1
    columns, rows = centres[:, 0], pixels - 1 - centres[:, 1]
    palette = torch.tensor([[colour >> 16, colour >> 8 & 255, colour & 255] for colour in COLOURS]) / 127.5 - 1
    chosen = torch.zeros(len(points), dtype=torch.long) if labels is None else labels.cpu() % len(COLOURS)
    picture = torch.ones(3, pixels, pixels)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            picture[:, rows + down, columns + right] = palette[chosen].T
    return picture[None]


def in_the_plane(features: Tensor) -> Tensor:
    """Features (N, F) along their two principal axes: (N, 2), about their mean, at the scale that they have."""
    features = features.detach().cpu()  # where no autocast turns it into half precision, which has no eigenvectors
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    centred = features - features.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # in ascending order
    return centred @ axes[:, [-1, -2]]


def bars(heights: Tensor, *, pixels: int = 96) -> Tensor:
    """One picture (1, 1, pixels, 4N) in [-1, 1]: a bar for each of the heights (N,) >= 0, the highest as high as it."""
    tops = (pixels * (1 - heights.detach().cpu() / heights.max().cpu().clamp_min(1e-12))).round()
    inside = torch.arange(pixels)[:, None] >= tops  # (pixels, N)
    filled = inside.repeat_interleave(4, 1) & (torch.arange(4 * len(heights)) % 4 < 3)  # a gap behind each
    return 1 - 2 * filled.float()[None, None]
