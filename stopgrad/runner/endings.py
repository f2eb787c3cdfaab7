"""How a run on several ranks ends early: which rank's reason is told, and by whom.

Rank 0 writes what it can; the process that started the ranks knows the signal that ended one, and has the last word.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stopgrad.runner.errors import RunFailed, wants_traceback

if TYPE_CHECKING:
    from stopgrad.runner.launch import Job


class RankLost(RunFailed):
    """An exchange ended because another rank has; that one knows why."""


def lost(error: BaseException, config: DictConfig) -> RunFailed | None:
    """What to say where gloo or NCCL could not end an exchange; None where the recipe or the machine is to blame."""
    text = str(error).lower()
    if "timeout" not in config.trainer or not isinstance(error, RuntimeError) or isinstance(error, RunFailed):
        return None
    if "timed out" in text or "timeout" in text:
        return RunFailed(f"trainer.timeout={config.trainer.timeout}: for so many seconds another rank did not answer")
    broken = type(error).__name__.startswith("Dist") or "gloo" in text or "nccl" in text or "peer" in text
    return RankLost("an exchange was broken off: another rank has ended") if broken else None


def since(folder: Path, began: float) -> dict[str, Any]:
    """The result that a run has left in ``folder`` since then; empty where it has left none."""
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.exists() and file.stat().st_mtime >= began else {}


def told(jobs: Sequence[Job], began: float, rank: int, failure: Any, asked: int) -> int:
    """Record and tell why the ranks ended before their last job was finished. Returns how many are done with.

    ``failure`` is the first that PyTorch's agent saw, of ``rank``; or None where the signal ``asked`` ended them all.

    Raises:
        SystemExit: no sweep goes on after this; with the shell's code for a signal, else 1.
    """
    statuses = [since(job.folder, began).get("status") for job in jobs]
    done = next((number for number, status in enumerate(statuses) if status != "finished"), len(jobs))
    if done == len(jobs):
        return done  # it failed as it left
    jobs[done].enter()
    if failure is None or (statuses[done] == "interrupted" and failure.exitcode > 128):
        _record(jobs[done], began, {"status": "interrupted"})
        raise SystemExit(failure.exitcode if failure else 128 + asked)
    message = _record(jobs[done], began, {"status": "raised"} | _reason(rank, failure))
    if wants_traceback() and isinstance(error := failure.error_file_data["message"], dict):
        print(error["extraInfo"]["py_callstack"], file=sys.stderr)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if not (in_sweep and message.startswith("stop.")):
        print(f"error: {message}", file=sys.stderr)
    if not in_sweep:
        raise SystemExit(1)
    return done + 1


def _reason(rank: int, failure: Any) -> dict[str, str]:
    """``error`` and ``message`` of a rank that failed: its own words, or the signal that ended it."""
    if failure.exitcode < 0:
        return {"error": "RankKilled", "message": f"rank {rank} was ended by {failure.signal_name()}"}
    said = failure.error_file_data["message"]
    if not isinstance(said, dict):
        return {"error": "RankEnded", "message": f"rank {rank} ended with status {failure.exitcode}"}
    line = said["message"].partition("\n")[0].removeprefix("RunFailed: ")
    return {"error": line.partition(":")[0], "message": f"rank {rank}: {line}"}


def _record(job: Job, began: float, why: dict[str, str]) -> str:
    """Write ``result.json`` as the ranks could not, tell how the run ended, and return its message.

    What rank 0 has written of a mistake of its own stands.
    """
    from stopgrad.compare.files import write_whole  # imports torch, which --help need not
    from stopgrad.runner.record import beginning
    from stopgrad.runner.terminal import ending

    nothing = {"steps": None, "metrics": {}, "seconds": time.time() - began, "flow": None, "violations": []}
    nothing |= {"contract": {"broken": "", "flipped": []}, "kept": []}
    result = since(job.folder, began) or beginning(job.config) | nothing
    if result.get("status") != "raised" or result["error"] == RankLost.__name__:
        result |= why
    write_whole(job.folder / "result.json", json.dumps(result, indent=2) + "\n")
    print(ending(result, job.folder), flush=True)
    return result.get("message", "")
