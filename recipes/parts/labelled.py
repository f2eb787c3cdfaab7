"""Images with their labels."""

from __future__ import annotations

from torch import Tensor

from recipes.parts.images import Batches, Images


class LabelledImages(Images):
    """Batches of images (B, C, H, W) and labels (B,); the arguments are those of :class:`Images`."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train_labels = self.labels

    def train_tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.labels

    def val_dataloader(self) -> Batches:
        """All held-out images and their labels, in one batch."""
        return Batches(self.held_out_images, self.held_out_labels, batch_size=len(self.held_out_labels))

    test_dataloader = val_dataloader
