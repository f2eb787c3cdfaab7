"""Train or evaluate a recipe: compose, check, seed, build, fit, test, record."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stopgrad.runner.check import pinned
from stopgrad.runner.errors import one_line_errors
from stopgrad.runner.launch import follow, follows, run_on_ranks
from stopgrad.runner.names import help_text, register
from stopgrad.runner.project import configs, open_project
from stopgrad.runner.safety import guard
from stopgrad.runner.sweep import compared, finished_before


def train(folder: str | Path) -> None:
    """What ``python train.py`` does in the project of ``folder``, by its command line: one run, or a sweep with ``-m``.

    A run is composed of the project's ``configs/`` and of those in ``stopgrad/runner/configs``.
    """
    open_project(folder)
    register()
    guard()
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(sys.argv[1:]))
    elif follows():
        follow(one_run)
    else:
        one_line_errors(
            compared(hydra.main(version_base="1.3", config_path=str(configs()), config_name="train")(start))
        )


def start(config: DictConfig) -> None:
    """One run of the config that Hydra composed, on all ranks that it asks for."""
    config = pinned(config)
    if not finished_before(config):
        run_on_ranks(config, one_run)


def one_run(config: DictConfig) -> str:
    """On every rank: build, train, test. Returns how it ended, such as ``finished``."""
    import lightning as L

    from stopgrad.runner.build import build, seed_rank
    from stopgrad.runner.checkpoints import end, on_sigterm
    from stopgrad.runner.record import record

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
