"""A run of a script in a process of its own, which cannot harm this one and is ended where it takes too long."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stopgrad.propose.record import Job, Record, record


def recorded(job: Job, timeout: float) -> Record:
    """Run a job.

    Raises:
        TimeoutError: it had not ended after so many seconds.
        ValueError: it ended before anything was measured.
    """
    with tempfile.TemporaryDirectory(prefix="stopgrad-propose-") as name:
        folder = Path(name)
        (folder / "job.pickle").write_bytes(pickle.dumps(job))
        with (folder / "out").open("wb") as out:
            # A fork has torch already. Where that may fail, a new process begins.
            can_fork = sys.platform == "linux" and not torch.cuda.is_initialized()
            status = (
                _forked(job, folder, out.fileno(), timeout) if can_fork else _started(folder, out.fileno(), timeout)
            )
        kept = folder / "record.pickle"
        if not kept.exists():
            said = (folder / "out").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = said[-1] if said else f"status {status}"
            raise ValueError(f"{job.script}: the run ended before anything was measured: {reason}")
        return pickle.loads(kept.read_bytes())


def _started(folder: Path, out: int, timeout: float) -> int:
    command = [sys.executable, "-m", "stopgrad.propose.record", str(folder)]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=timeout, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        raise TimeoutError from None


def _forked(job: Job, folder: Path, out: int, timeout: float) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        _become(job, folder, out)
    ends = time.monotonic() + timeout
    try:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > ends:
                raise TimeoutError
            time.sleep(0.02)
    except BaseException:  # Ctrl-C too
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _become(job: Job, folder: Path, out: int) -> None:
    """In the child: run the job, and end."""
    status = 1
    try:
        os.setsid()  # its own children end with it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        record(job, folder)
        status = 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
