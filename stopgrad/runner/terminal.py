"""What a person sees of a run: a bar while it goes, a warning above it, and lines when it has ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from stopgrad.runner.progress import Sweep, duration, shown
from stopgrad.runner.sweep import side_by_side

MOST = 3  # metrics that the bar shows
EVERY = 0.2  # seconds between two looks at them: each waits for the device
FORMAT = "{desc}{bar:12} {n_fmt}/{total_fmt}  {rate_noinv_fmt}  {remaining} left{metrics}"
WIDE = 110  # columns in which the arm's name has room too


def progress_bar() -> Callback | None:
    """A bar where a person watches one run at a time; none where output goes to a file, or runs go side by side."""
    return Bar() if sys.stderr.isatty() and not side_by_side() else None


class _Line(Tqdm):
    """tqdm's line, in which the metrics have a place of their own."""

    metrics = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        return super().format_dict | {"metrics": self.metrics}


class Bar(ProgressBar):
    """Step, rate, time left, and the first three metrics that the recipe logs with ``prog_bar=True``.

    Those that it declares in ``METRICS`` come first. In a sweep it begins with where the sweep is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown = True
        self.bar: _Line | None = None
        self._looked = 0.0

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.shown:
            done, total = trainer.global_step, trainer.max_steps
            form = {"bar_format": FORMAT, "unit": "", "leave": False, "dynamic_ncols": True, "file": sys.stderr}
            self.bar = _Line(desc=place(), initial=done, total=total, **form)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.bar is not None and (now := time.monotonic()) - self._looked >= EVERY:
            self._looked = now
            shown = self.get_metrics(trainer, pl_module)
            self.bar.metrics = "".join(f"  {name} {value:.3g}" for name, value in shown.items())
            self.bar.update(trainer.global_step - self.bar.n)
            self.bar.refresh()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:  # pyright: ignore
        logged: Mapping[str, Any] = trainer.progress_bar_metrics
        declared = getattr(sys.modules[type(pl_module).__module__], "METRICS", {})
        order = [*(name for name in declared if name in logged), *(name for name in logged if name not in declared)]
        return {name: float(logged[name]) for name in order[:MOST]}

    def on_train_end(self, *args: Any) -> None:
        self.close()

    def on_exception(self, *args: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        Tqdm.write(" ".join(map(str, args)), file=sys.stderr)


def place() -> str:
    """``arm 4 of 11, seed 1 of 3 (8 min left)  ``: where the sweep is as this run begins; nothing outside one."""
    if Sweep.now is None:
        return ""
    folder = Path(HydraConfig.get().runtime.output_dir)
    run, seconds = Sweep.now.run_in(folder), Sweep.now.seconds_left(folder)
    name = f"  {run.name}" if shutil.get_terminal_size().columns >= WIDE else ""
    return f"{run.place}{f' ({duration(seconds)} left)' if seconds else ''}{name}  "


def say(text: str) -> None:
    """One line on stderr, above the bar where there is one. In a sweep it begins with the run."""
    if Sweep.now is not None:
        run = Sweep.now.run_in(Path(HydraConfig.get().runtime.output_dir))
        text = f"{run.place}, {run.name}: {text}"
    Tqdm.write(f"warning: {text}", file=sys.stderr)


def ending(result: Mapping[str, Any], folder: Path) -> str:
    """What is printed of a run that has ended: a line in a sweep, else the summary."""
    if Sweep.now is None or HydraConfig.get().verbose:
        return summary(result, folder)
    return line(result, folder, Sweep.now)


def line(result: Mapping[str, Any], folder: Path, sweep: Sweep) -> str:
    """``arm 4 of 11, seed 1 of 3  none  frechet 4.22  16 s, 5 min left``."""
    run, seconds = sweep.run_in(folder), sweep.seconds_left(folder)
    width = max((len(each.name) for each in sweep.planned), default=0)
    left = f", {duration(seconds)} left" if seconds else ""
    return f"{run.place}  {run.name:<{width}}  {outcome(result):<18}  {duration(result['seconds']):>5}{left}"


def outcome(result: Mapping[str, Any]) -> str:
    """How a run ended, in a few words: the first declared metric, or why there is none."""
    if result["status"] == "raised":
        message = str(result["message"])
        return f"raised: {message}" if len(message) <= 50 else f"raised {result['error']}"
    if result["status"] != "finished":
        return f"{result['status']} after {result['steps']} steps"
    found = ((name, result["metrics"][name]) for name in result["metrics_declared"] if name in result["metrics"])
    return next((f"{name} {value:.3g}" for name, value in found), "finished")


def summary(result: Mapping[str, Any], folder: Path) -> str:
    """The closing lines: what ran, how it ended, what it cost, where it is."""
    chosen = " ".join(f"{name}={choice}" for name, choice in result["stop"].items())
    ended = result["status"] + (f": {result['message']}" if "message" in result and Sweep.now else "")
    cost = f"{result['steps']} steps in {result['seconds']:.1f} s"
    if result.get("step_time"):
        cost += f", {result['step_time'] * 1e3:.2f} ms a step, {result['saved_bytes'] >> 10} KiB saved for backward"
    if result["compiled"]:
        cost += f", compiled: {', '.join(result['compiled'])}"
    lines = [
        f"{result['recipe']}  {chosen}  seed {result['seed']}: {ended}",
        "  ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items()),
        *contract_lines(result),
        cost,
        str(shown(folder)),
    ]
    return "\n" + "\n".join(text for text in lines if text)


def contract_lines(result: Mapping[str, Any]) -> list[str]:
    """Whether the contract was broken, and whether that was to be expected; what keeps more and more graphs."""
    contract = result["contract"]
    flipped = " ".join(f"stop.{name}={result['stop'][name]}" for name in contract["flipped"])
    why = f" by {flipped}" if flipped else ", though no boundary is flipped"
    broken = [f"contract broken{why}: {contract['broken']}"] if contract["broken"] else []
    return broken + result["kept"]
