"""What ``compile=true`` and ``compile=update`` make of a step: CPU time of one thread, three ways in turn.

    python benchmarks/compiled.py                         # eight of them
    python benchmarks/compiled.py --works "recipe=vqvae"  # another

Each repeat trains the recipe as `python train.py compile=...` does, with its callbacks and logger, without evaluations:
`eager`, `true`, `update`, one after the other, and takes the median step after the first third.
What is shown is the median of the repeats, and the least and the most. `compiling` are the wall seconds of the first
third beyond as many eager steps, in the first repeat, with an empty cache: what it costs before it saves. The first
work's hold some seconds of imports too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from timing import WITHOUT_EVALUATIONS, built, prepare, spread  # noqa: E402

WORKS = [
    "recipe=gan recipe.loss=non_saturating recipe.penalty=none recipe.n_critic=1 data.batch_size=64",
    "recipe=gan",
    "recipe=td3",
    "recipe=dqn",
    "recipe=simsiam",
    "recipe=meanflow",
    "recipe=grpo",  # a transformer
    "recipe=loss_logging",  # convolutions
]
WAYS = {"eager": "false", "true": "true", "update": "update"}  # compile=


class Clock(L.Callback):
    """CPU seconds of each step, and the wall seconds of the first third."""

    def __init__(self, steps: int) -> None:
        self.warm_up, self.steps = steps // 3, list[float]()

    def on_train_start(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_start(self, *args: Any) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.process_time() - self.started)
        if len(self.steps) == self.warm_up:
            self.opening = time.perf_counter() - self.began


def trained(work: str, way: str, steps: int) -> Clock:
    """Seconds of a training."""
    torch.compiler.reset()
    overrides = [*work.split(), f"compile={way}", *WITHOUT_EVALUATIONS, f"trainer.max_steps={steps}"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), built(*overrides) as run:
        run.trainer.callbacks.append(clock := Clock(steps))  # pyright: ignore[reportAttributeAccessIssue]
        run.trainer.fit(run.recipe, run.data)
    return clock


def measured(work: str, steps: int, repeats: int) -> dict[str, Any]:
    """Of one work, milliseconds a step by way, their ratios to eager, and the seconds of compiling."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    compiling: dict[str, float] = {}
    for _ in range(repeats):
        openings = {}
        for way, choice in WAYS.items():
            clock = trained(work, choice, steps)
            found[way].append(1e3 * statistics.median(clock.steps[clock.warm_up :]))
            openings[way] = clock.opening
        compiling = compiling or {way: round(openings[way] - openings["eager"], 1) for way in ("true", "update")}
    ratios = {way: [b / a for a, b in zip(found["eager"], found[way], strict=True)] for way in ("true", "update")}
    return {
        "work": work,
        "milliseconds_a_step": {way: spread(each) for way, each in found.items()},
        "over_eager": {way: spread(each) for way, each in ratios.items()},
        "compiling": compiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", default=WORKS, help="overrides of train.py, each in quotes")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object")
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        found = [measured(work, options.steps, options.repeats) for work in options.works]
    told = {"repeats": options.repeats, "steps": options.steps, "threads": 1, "works": found}
    if options.json:
        print(json.dumps(told | {"torch": str(torch.__version__)}))
        return
    print(f"{'ms a step, of eager, seconds to compile':66} {'eager':>7} {'true':>19} {'update':>19}")
    for each in found:
        ms, ratio, cost = each["milliseconds_a_step"], each["over_eager"], each["compiling"]
        ways = [f"{ms[way]['median']:7.2f} {ratio[way]['median']:4.2f} {cost[way]:4.0f} s" for way in ratio]
        print(f"{each['work'][:66]:66} {ms['eager']['median']:7.2f} {ways[0]} {ways[1]}")


if __name__ == "__main__":
    main()
