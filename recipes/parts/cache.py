"""Tensors that take seconds to make, kept in files that are checked by hash before they are used."""

from __future__ import annotations

import fcntl
import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def cached(file: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make()`` gave when it was first asked for, or gives now where ``file`` is absent or damaged.

    A file begins with the SHA-256 of the rest, is written whole or not at all, and is read as tensors alone. Of several
    processes that ask for it at once, one makes it, and the others wait.
    """
    if (kept := _read(file)) is not None:
        return kept
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name(f".{file.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up with the file, or with the process
        if (kept := _read(file)) is not None:
            return kept
        made, stream = dict(make()), io.BytesIO()
        torch.save(made, stream)
        content = stream.getvalue()
        half_written = file.with_name(f".{file.name}.tmp")
        half_written.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        half_written.replace(file)
    return made


def _read(file: Path) -> dict[str, Tensor] | None:
    """What is kept, or None where that is absent or damaged."""
    if not file.exists():
        return None
    digest, _, content = file.read_bytes().partition(b"\n")
    whole = hashlib.sha256(content).hexdigest().encode() == digest
    return torch.load(io.BytesIO(content), weights_only=True) if whole else None
