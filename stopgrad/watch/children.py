"""Child processes that train: each is watched like the script itself, and tells of itself at its end."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stopgrad.watch.hooks import overhear
from stopgrad.watch.options import Options
from stopgrad.watch.page import write
from stopgrad.watch.report import Report, save
from stopgrad.watch.watch import Watch

_LEFT_ALONE = ("torch.utils.data", "multiprocessing", "torch.distributed")  # workers that load, managers


@dataclass(frozen=True)
class Child:
    """What a child process runs instead of ``target``: the same, watched. It can be pickled where the target can."""

    target: Callable[..., Any]
    script: str
    cycles: int
    every: int
    options: Options
    silenced: tuple[str, ...]
    json: str | None
    html: str | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch, ended = Watch(self.cycles, self.every, options=self.options), False
        try:
            with overhear(watch):
                result = self.target(*args, **kwargs)
                ended = True
                return result
        finally:
            watch.close(ended)
            if watch.ledger.losses:
                self._tell(Report.of(watch, self.script, dict.fromkeys(self.silenced, "")))

    def _tell(self, report: Report) -> None:
        name = multiprocessing.current_process().name
        sys.stdout.flush()
        print(f"\nchild process {name}\n{report}", file=sys.stderr, flush=True)
        if self.json:
            save(report, _beside(self.json, name), force=True)
        if self.html:
            write(report, _beside(self.html, name))


def _beside(file: str, name: str) -> Path:
    """``report.NAME.json`` of ``report.json``."""
    return Path(file).with_stem(f"{Path(file).stem}.{name}")


@contextmanager
def watched_children(
    watch: Watch, template: Callable[[Callable[..., Any]], Child], switches: bool = False
) -> Iterator[None]:
    """Inside, processes that multiprocessing starts are watched; those that only load data are left alone.

    Args:
        switches: stops are switched, which reaches children that are forked alone.
    """
    original = BaseProcess.start

    @functools.wraps(original)
    def start(self: Any) -> None:
        target = getattr(self, "_target", None)
        if type(self).run is not BaseProcess.run:
            watch.note("a child process of a class of its own was not watched")
        elif target is not None and not (getattr(target, "__module__", None) or "").startswith(_LEFT_ALONE):
            self._target = template(target)
            if switches and not _is_forked(self):
                watch.note("a child process that is spawned imports its files anew: in it no stop is switched")
        original(self)

    BaseProcess.start = start
    here = weakref.ref(watch)
    os.register_at_fork(after_in_child=lambda: _abandon(here()))
    try:
        yield
    finally:
        BaseProcess.start = original


def _is_forked(process: BaseProcess) -> bool:
    is_default = isinstance(process, multiprocessing.Process)
    return multiprocessing.get_start_method() == "fork" if is_default else isinstance(process, ForkProcess)


def _abandon(watch: Watch | None) -> None:
    """In a child that was forked, its parent's watch sees nothing any more."""
    if watch is not None:
        watch.abandon()
