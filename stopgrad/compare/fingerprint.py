"""Fingerprints of a training: small enough to keep a hundred of them, sharp enough to find one altered bit.

A hash of every tensor tells *where* two runs differ; a random projection ("sketch") of each group tells *how far* apart
they are, to about one part in twenty (Johnson & Lindenstrauss 1984); and the gradients of the first step are projected
more finely, for the cosine between arms.
"""

from __future__ import annotations

import hashlib
import random
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stopgrad.audits.ranks import bytes_of

FILE = "fingerprints.pt"
VERSION = 2  # of the file: another one means that hashes and sketches cannot be compared with these
SKETCH = 256  # numbers kept of each group: distances are right to 1 / sqrt(2 * 256) = 4%; exact up to 256 parameters
FINE = 4093  # of a gradient: a cosine is right to 1 / sqrt(4093) = .016; a prime, no layer repeats with it


def tensor_hash(*tensors: Tensor) -> int:
    """64 bits of BLAKE2b over the bytes of tensors, as a signed integer."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(bytes_of(tensor))
    return int.from_bytes(digest.digest(), "little", signed=True)


def random_hash() -> int:
    """Of the states of Python's, torch's and, where it is loaded, NumPy's random generators."""
    words = array("q", random.getstate()[1])
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        words.extend(numpy.random.get_state()[1].tolist())
    return tensor_hash(torch.frombuffer(words, dtype=torch.int64), torch.get_rng_state())


def sketch(tensors: Iterable[Tensor], size: int = SKETCH) -> Tensor:
    """(size,) float64: a random projection of all elements that keeps the norm, in expectation exactly.

    Element i goes, under a random sign, to a place that depends on i alone: the sketch of a difference is the
    difference of the sketches, and up to ``size`` elements it is an isometry. The sign is that of its row times
    that of its column in a table ``FINE`` wide, so that it is one matrix-vector product.
    """
    floating = [t.detach().reshape(-1) for t in tensors if t.is_floating_point() or t.is_complex()]
    floating = [torch.view_as_real(t).reshape(-1) if t.is_complex() else t for t in floating]
    if not floating:
        return torch.zeros(size, dtype=torch.float64)
    rows = -(-sum(t.numel() for t in floating) // FINE)
    flat = floating[0].new_zeros(rows * FINE, dtype=torch.float64)
    end = 0
    for each in floating:
        flat[end : (end := end + each.numel())] = each
    flat = flat.reshape(rows, FINE)
    projected = (_signs(rows, 1).to(flat.device) @ flat) * _signs(FINE, 2).to(flat.device)
    return projected.new_zeros(size).index_add_(0, _places(size).to(flat.device), projected).cpu()


@cache
def _places(size: int) -> Tensor:
    """(FINE,) the place of each column: its own for the first ``size``, a random one for the others."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"stopgrad places"))
    return torch.cat([torch.arange(size), torch.randint(0, size, (FINE - size,), generator=generator)])


@cache
def _signs(n: int, seed: int) -> Tensor:
    """(n,) of -1 and 1, always the same, and none of it from the global random stream."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"stopgrad sketch") + seed)
    return torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1


def group_of(name: str) -> str:
    """The group of a tensor of a state dict: the first part of its name."""
    return name.partition(".")[0]


@dataclass
class Fingerprints:
    """What was taken of one run.

    Attributes:
        names: of the tensors, in the order of the state dict.
        steps: batches done when each fingerprint was taken.
        hashes: one a step, a hash for each of ``names``.
        sketches: one a step, a sketch for each group.
        streams: one a step: hashes of the random states and of the batch that comes next (0: none).
        gradients: by group, the fine sketch of the gradient with which it was first stepped.
        stepped: by step, and by group, a sketch of the gradient with which it was stepped then; of some steps.
    """

    names: list[str]
    steps: list[int] = field(default_factory=list)
    hashes: list[list[int]] = field(default_factory=list)
    sketches: list[dict[str, Tensor]] = field(default_factory=list)
    streams: list[tuple[int, int]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    stepped: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def take(self, step: int, state: Mapping[str, Tensor], streams: tuple[int, int] = (0, 0)) -> None:
        """Add a fingerprint of the state dict as it is now."""
        if self.steps and self.steps[-1] == step:
            return
        self.steps.append(step)
        self.hashes.append([tensor_hash(state[name]) for name in self.names])
        groups: dict[str, list[Tensor]] = {}
        for name in self.names:
            groups.setdefault(group_of(name), []).append(state[name])
        self.sketches.append({group: sketch(tensors) for group, tensors in groups.items()})
        self.streams.append(streams)

    def at(self, step: int) -> int | None:
        """Where the fingerprint of ``step`` stands, or None."""
        return self.steps.index(step) if step in self.steps else None

    def save(self, file: Path) -> None:
        """Write to ``file``, whole or not at all."""
        content = {
            "version": VERSION,
            "names": self.names,
            "steps": self.steps,
            "hashes": torch.tensor(self.hashes, dtype=torch.int64),
            "sketches": {
                group: torch.stack([taken.get(group, torch.zeros(SKETCH).double()) for taken in self.sketches])
                for group in (self.sketches[-1] if self.sketches else {})  # of a script, some come later
            },
            "streams": torch.tensor(self.streams, dtype=torch.int64),
            "gradients": self.gradients,
            "stepped": self.stepped,
        }
        half_written = file.with_name(f".{file.name}.tmp")
        torch.save(content, half_written)
        half_written.replace(file)

    @classmethod
    def load(cls, file: Path) -> Fingerprints:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged, or of another kind.
        """
        try:
            content = torch.load(file, weights_only=True, map_location="cpu")
            if content["version"] != VERSION:
                raise ValueError("written by another version of stopgrad")
            groups = content["sketches"]
            taken = [{group: rows[k] for group, rows in groups.items()} for k in range(len(content["steps"]))]
            streams = [(state, batch) for state, batch in content["streams"].tolist()]
            names, steps, hashes = content["names"], content["steps"], content["hashes"].tolist()
            return cls(names, steps, hashes, taken, streams, content["gradients"], content.get("stepped", {}))
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{file}: cannot be read: {reason}") from None

    def merged(self, other: Fingerprints) -> Fingerprints:
        """Both, ordered by step.

        Raises:
            ValueError: they disagree at a step, so that ``other`` is no replay of this run.
        """
        for k, step in enumerate(self.steps):
            if other.at(step) is not None and other.hashes[other.steps.index(step)] != self.hashes[k]:
                raise ValueError(f"gave other weights at step {step}: something beside the config changed one of them")
        both = {step: (other, k) for k, step in enumerate(other.steps)} | {
            s: (self, k) for k, s in enumerate(self.steps)
        }
        out = Fingerprints(self.names, gradients=self.gradients, stepped={**other.stepped, **self.stepped})
        for step in sorted(both):
            source, k = both[step]
            out.steps.append(step)
            out.hashes.append(source.hashes[k])
            out.sketches.append(source.sketches[k])
            out.streams.append(source.streams[k])
        return out
