"""A run of a script in a process of its own, which cannot harm this one and is ended where it takes too long."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

from stopgrad.propose.record import RECORD, Job, Record, record
from stopgrad.rewrite.process import end, started


def recorded(job: Job, timeout: float) -> Record:
    """Run a job.

    Raises:
        TimeoutError: it had not ended after so many seconds.
        ValueError: it ended before anything was measured.
    """
    with tempfile.TemporaryDirectory(prefix="stopgrad-propose-") as name:
        folder = Path(name)
        process = started(record, job, folder, output=folder / "out")
        try:
            process.join(timeout)
            if process.is_alive():
                raise TimeoutError
        finally:
            end(process)
        kept = folder / RECORD
        if not kept.exists():
            said = (folder / "out").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = said[-1] if said else f"status {process.exitcode}"
            raise ValueError(f"{job.script}: the run ended before anything was measured: {reason}")
        return pickle.loads(kept.read_bytes())
