"""Training a classifier once, and keeping it: a cache under the hash of everything that made it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.parts.batches import Batches
from recipes.parts.cache import cached

SPECIFICATION = "AdamW, one cycle to 5e-3; batch 64; cross-entropy; seed 0"


def fingerprint(*parts: str | Tensor | Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any byte, shape or name of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        for name, tensor in ({"": part} if isinstance(part, Tensor) else part).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            copy = tensor.detach().cpu().contiguous().reshape(-1).clone()  # NumPy never lets go of what it has shared
            digest.update(copy.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_whole(content: object, file: Path) -> None:
    """``torch.save`` so that a reader sees the whole file or none, also where two processes write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half_written = file.with_suffix(f".{os.getpid()}.tmp")
    torch.save(content, half_written)
    half_written.replace(file)


def train_classifier(classifier: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """Train by :data:`SPECIFICATION`, in place."""
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for x, y in Batches(images, labels, batch_size=64, length=steps):
        optimizer.zero_grad()
        F.cross_entropy(classifier(x), y).backward()
        optimizer.step()
        schedule.step()


def pretrained(classifier: nn.Module, images: Tensor, labels: Tensor, *, steps: int, cache: Path) -> dict[str, Tensor]:
    """The weights of ``classifier`` trained on ``images`` (N, C, H, W) and ``labels`` (N,), from the cache if there.

    ``classifier`` gives the architecture and the initial weights, and is left trained. Draws nothing from the global
    random state.
    """
    made_by = fingerprint(SPECIFICATION, f"{steps} steps {classifier}", classifier.state_dict(), images, labels)

    def train() -> Mapping[str, Tensor]:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            train_classifier(classifier, images, labels, steps)
        return classifier.state_dict()

    return cached(cache / f"pretrained-{made_by}.pt", train)


@torch.no_grad()
def kept_features(backbone: nn.Module, inputs: Tensor, file: Path | None, cache: Path) -> Tensor:
    """Features (N, F) of inputs (N, ...) by a backbone in eval mode: from ``file`` if it is there, else into it.

    Args:
        file: None for one in ``cache`` under the hash of the backbone and the inputs.

    Raises:
        ValueError: the file was made by another backbone or from other inputs, or is no such file.
    """
    made_by = fingerprint(str(backbone), backbone.state_dict(), inputs)
    file = cache / f"features-{made_by}.pt" if file is None else file
    if not file.exists():
        device = next(backbone.parameters()).device
        features = torch.cat([backbone(some.to(device)).cpu() for some in inputs.split(500)])
        save_whole({"made_by": made_by, "features": features}, file)
    try:
        kept = torch.load(file, weights_only=True)
        features, maker = kept["features"], kept["made_by"]
    except Exception:
        raise ValueError(f"recipe.feature_cache={file}: is no file of features; delete it, or choose another") from None
    if maker != made_by:
        raise ValueError(
            f"recipe.feature_cache={file}: made by another backbone or from other data; delete it, or choose another"
        )
    return features
