"""Regression on a two-layer linear network whose pretrained first layer is perfect: Kumar et al. 2022, section 3."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from recipes.parts.batches import InMemory


class LinearTask(InMemory):
    """y = w B x with B (F, D) of orthonormal rows and |w| = 1; training inputs fill a subspace only.

    The inputs out of distribution are N(0, 1) in all D dimensions, so that a mean squared error on them is
    ``|w B - w' B'|^2`` of a learnt pair (w', B').

    Args:
        inputs: D.
        features: F, the rows of B.
        subspace: dimensions of the training inputs; at least F, so that they tell w, and fewer than D.
        samples: training inputs.
        batch_size: inputs a batch, on each rank; by default all.
        steps: batches an epoch.
        seed: of w, B, the subspace and the inputs.
        cache: folder for features that a recipe keeps.
    """

    def __init__(
        self,
        *,
        inputs: PositiveInt = 100,
        features: PositiveInt = 20,
        subspace: PositiveInt = 30,
        samples: PositiveInt = 64,
        batch_size: PositiveInt = 64,
        steps: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size, steps, seed)
        if not features <= subspace < inputs:
            raise ValueError(f"data.subspace={subspace}: choose from {features} to {inputs - 1}")
        random = np.random.default_rng(seed)

        def rows(n: int) -> Tensor:
            """(n, D), orthonormal."""
            return torch.from_numpy(np.linalg.qr(random.normal(size=(inputs, n)))[0].T.copy()).float()

        def normal(*size: int) -> Tensor:
            return torch.from_numpy(random.normal(size=size)).float()

        self.backbone, self.head = rows(features), normal(1, features)  # B and w
        self.head /= self.head.norm()
        inside = rows(subspace)
        self.train_inputs, self.inputs = normal(samples, subspace) @ inside, normal(1000, subspace) @ inside
        self.ood_inputs = normal(1000, inputs)
        self.train_labels = self.labels(self.train_inputs)

    def labels(self, inputs: Tensor) -> Tensor:
        """(N, D) to (N, 1)."""
        return inputs @ self.backbone.T @ self.head.T

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.train_inputs, self.train_labels

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        """Inputs (N, D) like the training's and labels (N, 1), inputs out of distribution and labels."""
        return self.inputs, self.labels(self.inputs), self.ood_inputs, self.labels(self.ood_inputs)
