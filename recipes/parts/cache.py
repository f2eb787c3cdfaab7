"""Tensors that take seconds to make, kept in files that are checked by hash before they are used."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def cached(file: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make()`` gave when it was first asked for, or gives now where ``file`` is absent or damaged.

    A file begins with the SHA-256 of the rest, is written whole or not at all, and is read as tensors alone.
    """
    if file.exists():
        digest, _, content = file.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == digest:
            return torch.load(io.BytesIO(content), weights_only=True)
    made, stream = dict(make()), io.BytesIO()
    torch.save(made, stream)
    content = stream.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    half_written = file.with_name(f".{file.name}.{os.getpid()}")
    half_written.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    half_written.replace(file)
    return made
