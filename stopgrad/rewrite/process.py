"""A run of a script in a process of its own: what it prints goes into a file, and what it starts ends with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


def started(function: Callable[..., None], *args: Any, output: Path) -> BaseProcess:
    """A process that runs ``function(*args)``. Where that is safe it is forked, and has torch already."""
    can_fork = sys.platform == "linux" and not torch.cuda.is_initialized()
    context: Any = multiprocessing.get_context("fork" if can_fork else "spawn")
    process = context.Process(target=_run, args=(function, args, output))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process.start()
    return process


def _run(function: Callable[..., None], args: tuple[Any, ...], output: Path) -> None:
    os.setsid()  # a group of its own, by which it is ended
    with open(os.devnull) as nothing, open(output, "w") as file:
        for descriptor, stream in enumerate((nothing, file, file)):
            os.dup2(stream.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    try:
        function(*args)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def end(process: BaseProcess) -> None:
    """End a process that still runs, and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended, or it has not begun
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()
