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
from recipes.run.ranks import follow, follows, run_on_ranks
from recipes.run.safety import guard
from recipes.run.sweep import compared, finished_before

register()
guard()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    config = pinned(config)
    if not finished_before(config):
        run_on_ranks(config, one_run)


def one_run(config: DictConfig) -> str:
    """On every rank: build, train, test. Returns how it ended, such as ``finished``."""
    import lightning as L

    from recipes.run.build import build, seed_rank
    from recipes.run.checkpoints import end, on_sigterm
    from recipes.run.record import record

    on_sigterm(end)
    L.seed_everything(config.seed, workers=True, verbose=False)
    run = build(config)
    seed_rank(config.seed)
    with record(config, run) as result:
        if config.mode == "train":
            run.trainer.fit(run.recipe, run.data, ckpt_path=config.ckpt_path)
            run.trainer.test(run.recipe, run.data, verbose=False)
        else:
            run.trainer.test(run.recipe, run.data, ckpt_path=config.ckpt_path, verbose=False)
    return result["status"]


if __name__ == "__main__":
    if follows():
        follow(one_run)
    else:
        one_line_errors(compared(main))
