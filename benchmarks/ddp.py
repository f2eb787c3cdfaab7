"""Steps per second of a GAN on two CPU processes over gloo: gradients averaged by our strategy, and by Lightning's DDP.

    python benchmarks/ddp.py                      # the MLP of recipe=gan, 256 units
    python benchmarks/ddp.py --width 1024         # 20 times the weights: more to exchange

Same recipe, same data, same processes, in turn: `ours` averages after each backward, `DDP` is Lightning's DDPStrategy
with find_unused_parameters=True, which a GAN's two losses need. Beside them one process with the whole batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from conf_tests.distributed.pair import on_two_ranks, trainer  # noqa: E402
from conf_tests.helpers import config  # noqa: E402
from stopgrad.runner.averaging import AveragedGradients  # noqa: E402
from stopgrad.runner.build import build_recipe, quiet, share  # noqa: E402

WARM_UP = 10


class Clock(L.Callback):
    """Seconds a step after the warm-up."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == WARM_UP:
            self.started = time.perf_counter()
        elif batch_idx + 1 == trainer.max_steps:
            self.seconds = (time.perf_counter() - self.started) / (trainer.max_steps - WARM_UP)


def seconds_a_step(kind: str, width: int, steps: int, repeats: int) -> list[float]:
    quiet()
    found = []
    for _ in range(repeats):
        overrides = [f"recipe.width={width}", f"trainer.max_steps={steps}", f"cache={ROOT / '.cache'}"]
        composed = share(config("recipe=gan", *overrides), 1 if kind == "one" else 2)
        torch.manual_seed(0)
        recipe, data = build_recipe(composed), instantiate(composed.data, _convert_="all")
        recipe.setup = lambda stage: None  # no sample quality: what is timed is the training
        clock = Clock()
        options: dict[str, Any] = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "callbacks": [clock]}
        if kind == "one":
            options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **options).fit(recipe, data)
        else:
            strategy = AveragedGradients() if kind == "ours" else DDPStrategy(find_unused_parameters=True)
            trainer(strategy, **options).fit(recipe, data)
        found.append(clock.seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"ours": [], "DDP": [], "one": []}
    for _ in range(arguments.repeats):
        for kind in ("ours", "DDP"):
            times[kind].append(on_two_ranks(seconds_a_step, kind, arguments.width, arguments.steps, 1)[0][0])
        times["one"] += seconds_a_step("one", arguments.width, arguments.steps, 1)
    median = {kind: statistics.median(each) for kind, each in times.items()}
    found = {"width": arguments.width, "repeats": arguments.repeats, "ours_over_ddp": median["ours"] / median["DDP"]}
    found["ours_over_one"] = median["ours"] / median["one"]
    if arguments.json:
        print(json.dumps(found | {"milliseconds": {kind: value * 1e3 for kind, value in median.items()}}))
        return
    for kind, value in median.items():
        print(f"{kind:5} {value * 1e3:8.2f} ms a step")
    print(f"ours takes {found['ours_over_ddp']:.2f} of DDP's time, {found['ours_over_one']:.2f} of one process's")


if __name__ == "__main__":
    main()
