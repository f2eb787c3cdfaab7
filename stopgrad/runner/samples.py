"""Pictures for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad


def image_grid(images: Tensor) -> Tensor:
    """One picture (C, height, width) in [0, 1] of N images (N, C, H, W) in [-1, 1]: square, small images enlarged."""
    images = (images.detach().float().cpu().clamp(-1, 1) + 1) / 2
    images = interpolate(images, scale_factor=max(1, 32 // images.shape[-1]))
    images = pad(images, (1, 1, 1, 1), value=0.5)
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    images = torch.cat([images, images.new_full((rows * columns - n, channels, height, width), 0.5)])
    return (
        images.reshape(rows, columns, channels, height, width)
        .permute(2, 0, 3, 1, 4)
        .reshape(channels, rows * height, columns * width)
    )


def add_grid(logger: Any, tag: str, images: Tensor, step: int) -> None:
    """Write a grid of images (N, C, H, W) to TensorBoard, where that is the logger; else do nothing."""
    writer = getattr(logger, "experiment", None)
    if writer is not None and hasattr(writer, "add_image"):
        writer.add_image(tag, image_grid(images), step)


def save_grid(file: Path, images: Tensor) -> None:
    """Write a grid of images (N, C, H, W) as a PNG."""
    Image.fromarray((image_grid(images) * 255).byte().permute(1, 2, 0).squeeze(-1).numpy()).save(file)
