"""The workers of ``hydra/launcher=joblib``: they import torch and Lightning while the sweep is checked."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from stopgrad.runner.imports import import_lightning
from stopgrad.runner.launch import PRELOAD

SAME = ("n_jobs", "prefer", "require", "temp_folder", "max_nbytes", "mmap_mode")  # by which joblib knows its workers


@contextmanager
def workers_import(config: DictConfig, runs: int) -> Iterator[None]:
    """Let the workers of the sweep's launcher, if that is joblib's, import what a run needs; the launcher finds them.

    Where the block is left by an exception they are ended at once.
    """
    launcher = config.hydra.launcher
    if not launcher._target_.endswith(".JoblibLauncher") or launcher.n_jobs in (0, 1) or launcher.require:
        yield
        return
    joblib, loky = (importlib.import_module(name) for name in ("joblib", "joblib.externals.loky"))  # with the launcher
    with joblib.Parallel(backend="loky", **{key: launcher[key] for key in SAME}):  # what it makes stays
        count = joblib.effective_n_jobs(launcher.n_jobs)
    workers = loky.get_reusable_executor(count, reuse=True)
    for _ in range(min(count, runs) if count > 1 else 0):  # one runs in this process
        workers.submit(_import)
    passed = False
    try:
        yield
        passed = True
    finally:
        if not passed:
            workers.shutdown(kill_workers=True)


def _import() -> None:
    import_lightning()
    for name in PRELOAD:
        importlib.import_module(name)
