"""The arms of a sweep, their step times measured anew: interleaved, in one process, on one machine.

python benchmarks/arms.py runs/gan/sweep-TIME

What separate runs took depends on what else the machine did. Here every arm trains for some steps in turn, many times;
the ratio to the reference is taken within each turn. The figures go to DIR/step_times.json and into the comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra.utils import instantiate

from stopgrad.compare import STEP_TIMES, Comparison, compare
from stopgrad.runner.build import build_recipe, quiet

WARM_UP = 10


class Clock(Callback):
    """Seconds of each step, without what lies between steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.perf_counter() - self.started)


def step_time(config: DictConfig, steps: int) -> float:
    """Median seconds of a step of one arm, from its beginning."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        settings = {"logger": False, "callbacks": [clock], "enable_checkpointing": False, "enable_progress_bar": False}
        settings |= {"max_steps": WARM_UP + steps, "limit_val_batches": 0, "default_root_dir": folder}
        trainer = instantiate(config.trainer, _convert_="all", **settings)
        trainer.fit(build_recipe(config), instantiate(config.data, _convert_="all"))
    return statistics.median(clock.times[WARM_UP:])


def configs(comparison: Comparison) -> dict[str, DictConfig]:
    """The config of each arm's first finished run; the reference first."""
    found: dict[str, DictConfig] = {}
    for name in (arm["name"] for arm in comparison.content["arms"]):
        runs = [run for run in comparison.found.runs if run.arm == name and run.finished]
        if runs:
            config = OmegaConf.load(runs[0].folder / "config.yaml")
            assert isinstance(config, DictConfig)
            found[name] = config
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    warnings.filterwarnings("ignore")
    arms = configs(compare([arguments.folder]))
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(arguments.repeats):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            seconds[name].append(step_time(arms[name], arguments.steps))
    first = next(iter(arms))
    figures = {
        name: {
            "step_time": statistics.median(times),
            "ratio": statistics.median(a / b for a, b in zip(times, seconds[first], strict=True)),
            "ratios": [round(a / b, 4) for a, b in zip(times, seconds[first], strict=True)],
        }
        for name, times in seconds.items()
    }
    content = {
        "reference": first,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "threads": 1,
        "arms": figures,
    }
    (arguments.folder / STEP_TIMES).write_text(json.dumps(content, indent=1) + "\n")
    compare([arguments.folder]).write(arguments.folder)
    if arguments.json:
        print(json.dumps(content))
        return
    print(f"step times over {first}'s, median of {arguments.repeats} interleaved turns of {arguments.steps} steps")
    for name, found in figures.items():
        low, high = min(found["ratios"]), max(found["ratios"])
        print(f"  {name:<24} {found['ratio']:.2f}  ({low:.2f} to {high:.2f})  {found['step_time'] * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
