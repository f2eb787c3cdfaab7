"""Whether the ranks of a run that began alike still hold the same parameters, asked without a collective call."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from stopgrad.cuts.torch_internals import default_store
from stopgrad.watch.moves import sample

_numbers = itertools.count()  # of the watches of this process, the same on all ranks
AT = (0, 1, 8, 30)  # steps of the run after which they are compared
PATIENCE = 5.0  # seconds


class Ranks:
    """Each rank leaves a digest in the store of the process group; rank 0 reads what is there at the end.

    While the script runs nobody waits; at the end rank 0 gives those that are behind a few seconds.

    Attributes:
        drifted: rank 0 alone: the step at which a rank was first seen to differ, and the rank; None where none does.
    """

    def __init__(self) -> None:
        self.drifted: tuple[int, int] | None = None
        self._store: Any = None  # dist.Store
        self._own: dict[int, str] = {}
        self._number = next(_numbers)
        self._rank, self._size = 0, 1

    @property
    def is_first(self) -> bool:
        return self._rank == 0

    def at(self, step: int, parameters: Iterable[Tensor]) -> None:
        """The run has made so many steps."""
        if step not in AT or step in self._own or not (dist.is_available() and dist.is_initialized()):
            return
        if self._store is None:
            self._rank, self._size = dist.get_rank(), dist.get_world_size()
            self._store = default_store() if self._size > 1 else None
        if self._store is None:
            return
        digest = hashlib.sha256()
        for p in parameters:
            values = sample(p)
            if values is not None:
                digest.update(str(tuple(p.shape)).encode())
                digest.update(values.double().cpu().numpy().tobytes())
        self._own[step] = digest.hexdigest()
        self._store.set(f"stopgrad/{self._number}/{step}/{self._rank}", self._own[step])

    def compare(self) -> None:
        """Rank 0 reads what the others have left. The store is let go: it must not outlive the process's own end."""
        try:
            self._compare()
        finally:
            self._store = None

    def _compare(self) -> None:
        """Ranks that never were alike, such as shards, are not compared."""
        if self._store is None or self._rank or 0 not in self._own:
            return
        end = time.monotonic() + PATIENCE
        others = [(step, rank) for step in self._own for rank in range(1, self._size)]
        while time.monotonic() < end and any(self._read(*other) is None for other in others):
            time.sleep(0.05)
        alike = [rank for rank in range(1, self._size) if self._read(0, rank) == self._own[0]]
        for step in sorted(self._own):
            for rank in alike:
                other = self._read(step, rank)
                if other is not None and other != self._own[step]:
                    self.drifted = step, rank
                    return

    def _read(self, step: int, rank: int) -> str | None:
        key = f"stopgrad/{self._number}/{step}/{rank}"
        try:
            return self._store.get(key).decode() if self._store is not None and self._store.check([key]) else None
        except RuntimeError:  # the store has gone with the process that served it
            return None
