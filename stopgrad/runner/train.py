"""Train or evaluate a recipe: compose, check, seed, build, fit, test, record."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stopgrad.runner.check import pinned
from stopgrad.runner.errors import one_line_errors
from stopgrad.runner.hydra_internals import read_by_libyaml
from stopgrad.runner.imports import import_lightning
from stopgrad.runner.launch import Job, adopt_srun, averages, follows, launch, on_ranks_there, ranks_are_there
from stopgrad.runner.names import help_text, register
from stopgrad.runner.project import configs, open_project
from stopgrad.runner.safety import guard
from stopgrad.runner.sweep import compared, finished_before, side_by_side

WAITING: list[Job] = []  # runs on several ranks, which start when all are known


def train(folder: str | Path) -> None:
    """What ``python train.py`` does in the project of ``folder``, by its command line: one run, or a sweep with ``-m``.

    A run is composed of the project's ``configs/`` and of those in ``stopgrad/runner/configs``.
    """
    gc.freeze()  # no garbage among what was imported: it is not searched again, now or as Python ends
    read_by_libyaml()
    open_project(folder)
    register()
    guard()
    adopt_srun()
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(sys.argv[1:]))
    elif follows():
        on_ranks_there(one_run)
    else:
        one_line_errors(compared(whole))


def whole() -> None:
    """Compose, check and run; a sweep's runs on several ranks come last, so that all of them share the ranks."""
    hydra.main(version_base="1.3", config_path=str(configs()), config_name="train")(start)()
    launch(one_run, WAITING)


def start(config: DictConfig) -> None:
    """One run of the config that Hydra composed, on all ranks that it asks for."""
    config = pinned(config)
    if finished_before(config):
        return
    if not averages(config):
        one_run(config)
    elif ranks_are_there():
        on_ranks_there(one_run, Job.of(config))
    elif side_by_side():  # in a process that will not come back here
        launch(one_run, [Job.of(config)])
    else:
        WAITING.append(Job.of(config))


def one_run(config: DictConfig, last: Path | None = None) -> None:
    """On every rank: build, train, test. Where ``last`` is its own checkpoint, the run goes on from there."""
    import_lightning()
    import lightning as L

    from stopgrad.runner.build import build, seed_rank
    from stopgrad.runner.checkpoints import end, on_sigterm
    from stopgrad.runner.record import record

    on_sigterm(end)
    L.seed_everything(config.seed, workers=True, verbose=False)
    run = build(config)
    seed_rank(config.seed)
    with record(config, run):
        if config.mode == "train":
            run.trainer.fit(run.recipe, run.data, ckpt_path=last or config.ckpt_path)
            run.trainer.test(run.recipe, run.data, verbose=False)
        else:
            run.trainer.test(run.recipe, run.data, ckpt_path=config.ckpt_path, verbose=False)
