"""The project that runs: the folder with its train.py, its configs/ and its recipes/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_FOLDER = "STOPGRAD_PROJECT"  # in the environment, so that workers and ranks that this process starts know it too


def open_project(folder: str | Path) -> None:
    """Let recipes and configs be those of ``folder``, in this process and those that it starts."""
    os.environ[_FOLDER] = str(Path(folder).resolve())
    if os.environ[_FOLDER] not in sys.path:
        sys.path.insert(0, os.environ[_FOLDER])


def project() -> Path:
    """The folder of the project.

    Raises:
        RuntimeError: none is open.
    """
    if _FOLDER not in os.environ:
        raise RuntimeError("no project is open: call stopgrad.runner.train(FOLDER) or open_project(FOLDER) first")
    return Path(os.environ[_FOLDER])


def configs() -> Path:
    """The project's own configs; those that all projects share are in ``stopgrad/runner/configs``."""
    return project() / "configs"
