"""Steps per second of a GAN on two CPU processes over gloo, by each engine, in one run.

    python benchmarks/ddp.py                      # the MLP of recipe=gan, 256 units
    python benchmarks/ddp.py --width 1024         # 20 times the weights: more to exchange
    python benchmarks/ddp.py --write              # several widths, into docs/distributed.md

Same recipe, same data, same processes, in turn: `flat` is trainer=ddp on CPUs, `fsdp` and `fsdp shard=1` are FSDP2,
and `DDP` is Lightning's DDPStrategy with find_unused_parameters=True, which a GAN's two losses need. Beside them one
process with the whole batch.
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
from stopgrad.runner.sharding import FullyShard  # noqa: E402

WARM_UP = 10
ENGINES = {
    "flat": AveragedGradients,
    "fsdp shard=1": FullyShard,
    "fsdp": lambda: FullyShard(shard=None),
    "DDP": lambda: DDPStrategy(find_unused_parameters=True),
}
WIDTHS = (64, 256, 1024)
PAGE = ROOT / "docs" / "distributed.md"
MARKS = "<!-- engines -->\n", "<!-- end of engines -->"


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
            trainer(ENGINES[kind](), **options).fit(recipe, data)
        found.append(clock.seconds)
    return found


def measured(width: int, steps: int, repeats: int) -> dict[str, float]:
    """Median milliseconds a step, by engine; the engines in turn, so that a busy minute is shared."""
    times: dict[str, list[float]] = {kind: [] for kind in (*ENGINES, "one")}
    for _ in range(repeats):
        for kind in ENGINES:
            times[kind].append(on_two_ranks(seconds_a_step, kind, width, steps, 1)[0][0])
        times["one"] += seconds_a_step("one", width, steps, 1)
    return {kind: statistics.median(each) * 1e3 for kind, each in times.items()}


def table(found: dict[int, dict[str, float]], steps: int, repeats: int) -> str:
    """What docs/distributed.md shows."""
    others = list(ENGINES)[1:]
    head = " | ".join(f"`{kind}`" for kind in others)
    lines = [f"| width of the GAN | `flat`, ms a step | {head} | one process |", "|" + "---|" * (len(ENGINES) + 2)]
    for width, each in found.items():
        ratios = " | ".join(f"{each[kind] / each['flat']:.2f}" for kind in [*others, "one"])
        lines.append(f"| {width} | {each['flat']:.1f} | {ratios} |")
    said = f"Times that of `flat`: two processes over gloo, one thread each, {repeats} runs of {steps} steps, medians,"
    said += f" torch {torch.__version__.partition('+')[0]}; a busy machine moves them by a tenth or two."
    return "\n".join([*lines, "", said]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"the widths {WIDTHS}, into {PAGE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.write:
        found = {width: measured(width, arguments.steps, arguments.repeats) for width in WIDTHS}
        page, (start, end) = PAGE.read_text(), MARKS
        before, _, rest = page.partition(start)
        PAGE.write_text(
            before + start + table(found, arguments.steps, arguments.repeats) + end + rest.partition(end)[2]
        )
        return
    median = measured(arguments.width, arguments.steps, arguments.repeats)
    ratios = {kind: value / median["flat"] for kind, value in median.items()}
    if arguments.json:
        print(
            json.dumps(
                {"width": arguments.width, "repeats": arguments.repeats, "milliseconds": median, "of_flat": ratios}
            )
        )
        return
    for kind, value in median.items():
        print(f"{kind:14} {value:8.2f} ms a step, {ratios[kind]:.2f} of flat")


if __name__ == "__main__":
    main()
