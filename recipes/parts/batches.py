"""Data that lies in memory: shuffled by index, the same for every arm, resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor


class Batches:
    """An endless shuffled stream of batches from tensors in memory, whose whole state is one number: the position.

    Batch k depends on ``seed`` and k alone: pass after pass over the data, each in a fresh order, the last smaller
    batch of a pass dropped so that every step sees the same shapes. Arms of a comparison therefore share their data
    order, and a run that resumes at k sees what it would have seen. Iterating yields ``length`` batches from the
    position on. Yields a tensor where one tensor was given, else a tuple.

    Args:
        tensors: of equal length N; batches are gathered on the device they lie on.
        batch_size: samples a batch, on each rank.
        length: batches an iteration yields; one pass over the data if None.
        seed: of the order.
        rank, world_size: this process takes every ``world_size``-th sample of each pass.

    Raises:
        ValueError: the data cannot fill one batch.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tensors, self.batch_size, self.seed = tensors, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.per_pass = len(tensors[0]) // (batch_size * world_size)
        if self.per_pass == 0:
            most = len(tensors[0]) // world_size
            raise ValueError(f"data.batch_size={batch_size}: each rank has {most} samples; choose at most {most}")
        self.length = length or self.per_pass
        self.position = 0
        self._order = (-1, torch.empty(0))  # the pass it belongs to, and its indices

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            self.position += 1
            yield self.batch(self.position - 1)

    def batch(self, k: int) -> Any:
        """Batch ``k`` of the stream: (batch_size, ...) for each tensor."""
        a_pass, here = divmod(k, self.per_pass)
        if self._order[0] != a_pass:
            count = len(self.tensors[0])
            if count == 1:  # a stream of random numbers takes longer than a toy's step
                order = torch.zeros(1, dtype=torch.int64)
            else:
                order = torch.from_numpy(np.random.default_rng((self.seed, a_pass)).permutation(count))
            order = order[self.rank :: self.world_size]
            self._order = (a_pass, order.to(self.tensors[0].device))
        indices = self._order[1][here * self.batch_size : (here + 1) * self.batch_size]
        chosen = tuple(tensor.index_select(0, indices) for tensor in self.tensors)  # sooner than tensor[indices]
        return chosen[0] if len(chosen) == 1 else chosen

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class InMemory(L.LightningDataModule):
    """Batches of tensors that lie in memory, on the device that trains; and all that is held out, in one batch.

    A data set says what a batch is taken from, and what judges: ``train_tensors`` and ``held_out_tensors``.

    Args:
        batch_size: samples a batch, on each rank.
        steps: batches an epoch: set to the length of the run, so that one progress bar shows all of it.
        seed: of the order of the data.
    """

    def __init__(self, batch_size: int, steps: int | None, seed: int) -> None:
        super().__init__()
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def train_tensors(self) -> Sequence[Tensor]:
        """What a batch is taken from."""
        raise NotImplementedError

    def held_out_tensors(self) -> Sequence[Tensor]:
        """What judges."""
        raise NotImplementedError

    def train_dataloader(self) -> Batches:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else "cpu"
        return Batches(
            *(tensor.to(device) for tensor in self.train_tensors()),
            batch_size=self.batch_size,
            length=self.steps,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> Batches:
        tensors = self.held_out_tensors()
        return Batches(*tensors, batch_size=len(tensors[0]))

    def test_dataloader(self) -> Batches:
        return self.val_dataloader()
