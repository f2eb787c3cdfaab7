"""A sweep: it goes on where it was interrupted, and leaves a written comparison however it ends."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stopgrad.runner import names
from stopgrad.runner.errors import flat
from stopgrad.runner.progress import Sweep
from stopgrad.runner.project import open_project, project


class WriteComparison(Callback):
    """Remembers where the sweep goes. Hydra has no hook for its end by Ctrl-C: :func:`compared` does the rest.

    It travels to the workers of a launcher, and takes along what they need to know of the sweep.
    """

    folder: Path | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        take_part(state["common"], state["sweep"])
        self.__dict__ |= state

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            WriteComparison.folder = Path(config.hydra.sweep.dir)
        self.common, self.sweep = names.COMMON, Sweep.now
        if not config.hydra.verbose:
            print(Sweep.now, flush=True)


def take_part(common: set[str] | None, sweep: Sweep | None) -> None:
    """In a worker of a launcher, or a rank: import recipes, resolve names, and know of the sweep, as who started it."""
    open_project(project())
    names.register()
    names.COMMON, Sweep.now = common, sweep


def side_by_side() -> bool:
    """Whether a launcher other than Hydra's own runs the arms, which may be several at a time."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and not hydra.launcher._target_.endswith("BasicLauncher")


def compared(main: Callable[[], None]) -> Callable[[], None]:
    """``main``; if that was a sweep, whole or cut short, the comparison of its runs is written and printed."""

    @wraps(main)
    def wrapper() -> None:
        try:
            main()
        finally:
            if (folder := WriteComparison.folder) is not None and any(folder.glob("**/result.json")):
                from stopgrad.compare import compare

                try:
                    comparison = compare([folder])
                    comparison.write(folder)
                    print(f"\n{comparison}\n\n{folder / 'comparison.html'}")
                    print(f"python -m stopgrad board {folder}")
                except ValueError as error:  # such as a sweep of one run that raised
                    print(f"no comparison: {error}", file=sys.stderr)

    return wrapper


def finished_before(config: DictConfig) -> bool:
    """Whether this run of a sweep is there already, from a sweep into the same directory that was interrupted.

    One that was not finished is cleared away, and starts anew.

    Raises:
        SystemExit: the directory holds a run with another config; one line on stderr.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN or not (folder / "config.yaml").exists():
        return False
    was, now = ((folder / "config.yaml").read_text(errors="replace"), OmegaConf.to_yaml(config, resolve=True))
    if was != now:
        change = first_change(was, now, folder)
        print(f"error: hydra.sweep.dir={folder.parents[1]}: {change}; choose a new directory", file=sys.stderr)
        raise SystemExit(2)  # what else a job raises, Hydra comments on
    try:
        status = json.loads((folder / "result.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = "unfinished"
    if status == "finished":
        if hydra.verbose:
            print(f"\n{folder}: finished before")
        return True
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return False


def first_change(was: str, now: str, folder: Path) -> str:
    """The first key in which two configs differ, in words."""
    there, here = (flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (was, now))
    key = next((k for k in {**there, **here} if there.get(k) != here.get(k)), "config")
    place = "/".join(folder.parts[-2:])
    return f"{place} was run with {key}={there.get(key, '(nothing)')}, here it is {here.get(key, '(nothing)')}"
