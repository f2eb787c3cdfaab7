"""What a run leaves behind: ``config.yaml``, ``result.json``, and a closing summary for the person who watches."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import nn

import stopgrad
from stopgrad.audits.ranks import bytes_of, gathered
from stopgrad.compare.files import write_whole
from stopgrad.flow.drawing import flow_svg
from stopgrad.flow.routes import Record, written
from stopgrad.lightning import FlowAudit, RetentionAudit
from stopgrad.runner.build import Run, not_resumable
from stopgrad.runner.compiling import compiled_losses
from stopgrad.runner.contract import ContractAudit, in_a_line
from stopgrad.runner.declared import declaration
from stopgrad.runner.endings import lost
from stopgrad.runner.errors import RunFailed, flat
from stopgrad.runner.launch import started_here
from stopgrad.runner.loggers import close, log_settings
from stopgrad.runner.meter import Meter
from stopgrad.runner.names import as_typed
from stopgrad.runner.project import project
from stopgrad.runner.samples import save_grid
from stopgrad.runner.terminal import ending


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    found = {"stopgrad": stopgrad.__version__, "torch": str(torch.__version__)}
    for name in ("lightning", "hydra-core", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the project that runs, with ``+`` where the tree differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=project(), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def explained(error: BaseException, stop: dict[str, str]) -> str:
    """The first line of an error; with the reason and the way out where a strategy is what caused it."""
    message = str(error).partition("\n")[0] or type(error).__name__
    if "Inference tensors cannot be saved for backward" in message:
        names = [name for name, choice in stop.items() if choice == "inference_mode"]
        return (
            f"stop.{', stop.'.join(names)}=inference_mode: {message.partition('.')[0]}, as the consumer must. "
            "Use no_grad, which costs the same"
        )
    return message


def chosen_settings(config: DictConfig) -> dict[str, Any]:
    """What a run was made with beside its cuts and its seed, by key; not what only follows from another key."""
    sections = ("recipe", "data", "trainer")
    chosen, resolved = (
        flat({name: OmegaConf.to_container(config[name], resolve=each) for name in sections}) for each in (False, True)
    )
    return {key: v for key, v in resolved.items() if "${" not in str(chosen.get(key))} | {"compile": config.compile}


def replay_command(hydra: Any) -> dict[str, Any]:
    """How a comparison runs this training again, from ``first`` to ``last`` with a fingerprint after every step."""
    window = ["callbacks.fingerprints.window=[{first},{last}]", "hydra.run.dir={folder}", "logger=none"]
    return {
        "cwd": hydra.runtime.cwd,
        "arguments": [os.path.abspath(sys.argv[0]), *as_typed(hydra), *window],
    }


def compared_as(config: DictConfig, name: str) -> dict[str, Any] | None:
    """The comparison that the run is an arm of: its name, reference, arms, and the verdict expected of each."""
    if config.compare is None:
        return None
    arms, expect = list(config.compare.arms), dict(config.compare.get("expect") or {})
    return {"name": name, "reference": config.compare.reference, "arms": arms, "expect": expect}


def beginning(config: DictConfig) -> dict[str, Any]:
    """What is known of a run before its first step."""
    hydra = HydraConfig.get()
    declared = declaration(config.recipe._target_)
    return {
        "recipe": hydra.runtime.choices["recipe"],
        "arm": Path(hydra.runtime.output_dir).parent.name,
        "stop": OmegaConf.to_container(config.stop, resolve=True),
        "stop_default": declared.default_stop,
        "compare": compared_as(config, hydra.runtime.choices["compare"]),
        "seed": config.seed,
        "settings": chosen_settings(config),
        "mode": config.mode,
        "started": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "metrics_declared": declared.metrics,
        "versions": versions(),
        "commit": commit(),
        "replay": replay_command(hydra),
    }


@contextmanager
def record(config: DictConfig, run: Run) -> Iterator[None]:
    """Write ``config.yaml`` at the start and ``result.json`` at the end, however it comes; then print the summary.

    In a sweep an arm that raises is a result: it is recorded and the next arm starts. Of several ranks the first
    writes; where they do not finish, who has started them tells (``endings.py``).
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if run.trainer.is_global_zero:
        write_whole(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    result = beginning(config)
    stop, settings = result["stop"], result["settings"]
    started = time.perf_counter()
    failure: BaseException | None = None
    try:
        told = flat({"stop": stop}) | settings | {"seed": config.seed}
        log_settings(run.trainer.loggers, told, result["metrics_declared"])
        yield
        result |= of_ranks(run)
        result["status"] = "finished"
        if run.trainer.is_global_zero:
            leave_samples(run.recipe, folder / "samples.png")
    except (KeyboardInterrupt, SystemExit) as stopped:  # Lightning turns Ctrl-C into an exit
        failure = stopped
        result["status"] = "interrupted"
    except Exception as error:
        failure = error = not_resumable(error, config.ckpt_path) or lost(error, config) or error
        result |= {"status": "raised", "error": type(error).__name__, "message": explained(error, stop)}
    callbacks: Any = run.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    meter = next((c for c in callbacks if isinstance(c, Meter)), None)
    flow = next((c for c in callbacks if isinstance(c, FlowAudit)), None)
    kept = next((c for c in callbacks if isinstance(c, RetentionAudit)), None)
    tested = {name: value.item() for name, value in run.trainer.callback_metrics.items()}
    result |= {
        "steps": run.trainer.global_step,
        "threads": torch.get_num_threads(),  # Lightning sets them as it starts several ranks
        "metrics": dict(sorted(((meter.metrics if meter else {}) | tested).items())),
        "weights_sha256": weights_sha256(run.recipe),
        "compiled": compiled_losses(run.recipe),
        "seconds": time.perf_counter() - started,
        **(meter.costs() if meter else {}),
        "flow": flow.matrix.to_dict() if flow and flow.matrix else None,
        "violations": [violation.text for violation in flow.violations] if flow else [],
        "contract": {
            "broken": in_a_line(flow.violations) if flow else "",
            "flipped": flow.flipped if isinstance(flow, ContractAudit) else [],
        },
        "kept": kept.growing if kept else [],
    }
    if run.trainer.is_global_zero:
        if flow and flow.record:
            leave_picture(flow.record, folder)
        write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
        close(run.trainer.loggers)
        if failure is None or not started_here():
            print(ending(result, folder), flush=True)
    if failure is None:
        return
    if result["status"] == "interrupted" or not run.trainer.is_global_zero or started_here():
        raise failure
    expected = result["message"].startswith("stop.") or isinstance(failure, RunFailed)
    if not expected and hydra.mode != RunMode.MULTIRUN:
        raise failure
    if not expected:
        traceback.print_exception(failure)  # a mistake in the code more likely than a result
    if hydra.mode != RunMode.MULTIRUN:
        print(f"error: {result['message']}", file=sys.stderr)
        raise SystemExit(1)


def of_ranks(run: Run) -> dict[str, Any]:
    """``ranks``: the hash of the weights, and the contract's violations, on each of several ranks."""
    if run.trainer.world_size == 1:
        return {}
    callbacks: Any = run.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    found = [violation.text for c in callbacks if isinstance(c, FlowAudit) for violation in c.violations]
    return {"ranks": gathered({"weights_sha256": weights_sha256(run.recipe), "violations": found})}


def leave_picture(record: Record, folder: Path) -> None:
    """Write what was seen of the gradient's flow as ``flow.json``, and drawn as ``flow.svg``."""
    write_whole(folder / "flow.json", written(record))
    write_whole(folder / "flow.svg", flow_svg(record))


def leave_samples(recipe: Any, file: Path) -> None:
    """Write a grid of what the recipe samples, where it samples images."""
    if hasattr(recipe, "sample"):
        images = recipe.sample(64)
        if images.ndim == 4:
            save_grid(file, images)
