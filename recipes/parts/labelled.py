"""Images with their labels."""

from __future__ import annotations

from torch import Tensor

from recipes.parts.images import Images


class LabelledImages(Images):
    """Batches of images (B, C, H, W) and labels (B,); the arguments are those of :class:`Images`."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train_labels = self.labels

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.labels

    def held_out_tensors(self) -> tuple[Tensor, ...]:
        return self.held_out_images, self.held_out_labels
