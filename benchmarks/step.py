"""What a step of a recipe costs over its plain script, and over a Trainer that does nothing: CPU time of one thread.

    python benchmarks/step.py                          # every recipe that has a plain script: minutes
    python benchmarks/step.py tbptt dqn --repeats 7

`plain` is benchmarks/plain/NAME.py; `recipe`, what `python train.py recipe=NAME` trains, with its callbacks and logger,
without evaluations; `bare`, a step of a Trainer without callbacks or logger, in the same kind of optimisation, whose
module has one weight. Of each the first 50 steps are not counted. In turn; medians of the repeats. Where a plain step
takes more than 2 ms, the recipe may take 1.10 of it; elsewhere it may add 150 us to plain and bare.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from timing import FIRST, Clock, built, prepare, recipe_step, spread  # noqa: E402

LONG, RATIO, ADDED = 2e-3, 1.10, 150e-6  # the bars: a long plain step, its ratio, and what a short one may have on top
SECONDS, MOST = 0.6, 2000  # of a repeat; steps of one
UPDATES = {"td": 10}  # of the plain script, whose step is one, in a step of the recipe
AS_PLAIN = {  # where the script's sizes, or its way to cut, are not the recipe's defaults
    "muzero": ["recipe.num_unroll_steps=20"],
    "sinkhorn": ["stop.plan=no_grad"],
}


class Step(NamedTuple):
    """CPU seconds of a step."""

    plain: float
    recipe: float
    bare: float

    @property
    def ratio(self) -> float:
        return self.recipe / self.plain

    @property
    def added(self) -> float:
        """What the recipe has on top of the plain script and of a Trainer."""
        return self.recipe - self.plain - self.bare


def plain(name: str, steps: int) -> float:
    """Seconds a step of the plain script, in the recipe's steps, without its first ones."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "plain" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script)["time"] = SimpleNamespace(perf_counter=time.process_time)
    first, all_of_them = (n * UPDATES.get(name, 1) for n in (FIRST, steps))
    seconds = [n / script.train(steps=n)["steps_per_second"] for n in (first, all_of_them)]
    return (seconds[1] - seconds[0]) / (steps - FIRST)


class OneWeight(L.LightningModule):
    """As little as Lightning trains."""

    def __init__(self, automatic: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.automatic_optimization = automatic

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return self.weight.sum() if self.automatic_optimization else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def bare(automatic: bool, steps: int) -> float:
    """Seconds a step of a Trainer that has next to nothing to do."""
    off: dict[str, Any] = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing"], False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, enable_model_summary=False, callbacks=[clock := Clock(steps)], **off
    )
    trainer.fit(OneWeight(automatic), DataLoader(torch.zeros(steps, 1)))  # pyright: ignore[reportArgumentType]
    return clock.seconds


def measure(name: str, repeats: int, steps: int | None) -> tuple[list[Step], int]:
    """The steps of the repeats, and how many each took the mean of."""
    overrides = [f"recipe={name}", *AS_PLAIN.get(name, [])]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if steps is None:
            steps = FIRST + FIRST * max(1, min(MOST, round(SECONDS / plain(name, 2 * FIRST))) // FIRST)
        with built(*overrides) as run:
            automatic = run.recipe.automatic_optimization
        found = [
            Step(plain(name, steps), recipe_step(steps, *overrides), bare(automatic, max(steps, 500)))
            for _ in range(repeats)
        ]
    return found, steps - FIRST


def line(name: str, row: dict[str, Any]) -> str:
    """What one prints of a recipe."""
    plain_us, recipe_us, added, ratio = (row[key]["median"] for key in ("plain_us", "recipe_us", "added_us", "ratio"))
    said = "" if row["met"] else "  over the bar"
    return f"{name:<16} plain {plain_us:8.0f}  recipe {recipe_us:8.0f} us  {ratio:5.2f}x  {added:5.0f} us added{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(path.stem for path in (ROOT / "benchmarks" / "plain").glob("*.py"))
    parser.add_argument("names", nargs="*", help="of recipes; all that have a plain script")
    parser.add_argument("--steps", type=int, help=f"of each repeat; about {SECONDS} s of the plain script")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prepare()
    rows = {}
    for name in options.names or every:
        steps, count = measure(name, options.repeats, options.steps)
        row: dict[str, Any] = {"steps": count, "repeats": len(steps)}
        for what in ("plain", "recipe", "bare", "added"):
            row[f"{what}_us"] = spread([1e6 * getattr(step, what) for step in steps])
        row["ratio"] = spread([step.ratio for step in steps])
        long = statistics.median(step.plain for step in steps) > LONG
        row["met"] = row["ratio"]["median"] <= RATIO if long else row["added_us"]["median"] <= 1e6 * ADDED
        rows[name] = row
        if not options.json:
            print(line(name, row), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
