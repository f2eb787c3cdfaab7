"""What tests put into a run of train.py: few images, and a pause."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L

from recipes.parts.images import Images

ALLOW = f"allow=[{__name__.partition('.')[0]}]"
FEW_IMAGES = [ALLOW, f"data._target_={__name__}.FewImages"]
PAUSED = [ALLOW, f"+callbacks.pause={{_target_: {__name__}.Pause, folder: '${{hydra:runtime.output_dir}}'}}"]


class FewImages(Images):
    """200 images of a data set: their Frechet distance takes no time."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.images, self.labels = self.images[:160], self.labels[:160]
        self.held_out_images, self.held_out_labels = self.held_out_images[:40], self.held_out_labels[:40]


class Pause(L.Callback):
    """Where ``PAUSE`` is in the environment, the run waits after so many steps, until its file ``paused`` is gone."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder, "paused")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if str(trainer.global_step) == os.environ.get("PAUSE"):
            self.file.touch()
            while self.file.exists():
                time.sleep(0.01)
