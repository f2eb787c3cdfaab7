"""Train or evaluate a recipe: compose, seed, build, fit, test, record. Try `python train.py --help`."""

from __future__ import annotations

import os
import sys

import hydra
from omegaconf import DictConfig

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from recipes.run.checks import pinned
from recipes.run.errors import one_line_errors
from recipes.run.names import register
from recipes.run.sweep import compared, finished_before

register()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    config = pinned(config)
    if finished_before(config):
        return

    import lightning as L

    from recipes.run.build import build
    from recipes.run.record import record

    L.seed_everything(config.seed, workers=True, verbose=False)
    run = build(config)
    with record(config, run):
        if config.mode == "train":
            run.trainer.fit(run.recipe, run.data, ckpt_path=config.ckpt_path)
            run.trainer.test(run.recipe, run.data, verbose=False)
        else:
            run.trainer.test(run.recipe, run.data, ckpt_path=config.ckpt_path, verbose=False)


if __name__ == "__main__":
    one_line_errors(compared(main))
