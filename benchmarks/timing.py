"""What the benchmarks share: a recipe as train.py builds it, its CPU time a step, medians and their spread."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from stopgrad.runner.build import Run, build, quiet  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402

FIRST = 50  # steps that are not counted
WITHOUT_EVALUATIONS = ("trainer.val_check_interval=1000000000", "+trainer.limit_val_batches=0")


def prepare(threads: int = 1) -> None:
    """Before the first measurement of a benchmark."""
    torch.set_num_threads(threads)
    quiet()
    warnings.filterwarnings("ignore")
    register()


@contextmanager
def built(*overrides: str, seed: int = 0) -> Iterator[Run]:
    """What ``python train.py`` with these overrides would fit, with all its callbacks and its logger."""
    with tempfile.TemporaryDirectory() as folder:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config: Any = compose("train", [*overrides, f"seed={seed}", f"cache={ROOT / '.cache'}"])
        config = OmegaConf.create(OmegaConf.to_yaml(config).replace("${hydra:runtime.output_dir}", folder))
        L.seed_everything(seed, workers=True, verbose=False)
        yield build(config)


class Clock(L.Callback):
    """CPU seconds a step, from after the first ones on; the training ends with the last.

    The first 50 are more than a step: audits, fingerprints, buffers that fill. What comes every 50 is counted in full.
    """

    def __init__(self, steps: int, first: int = FIRST) -> None:
        self.first, self.steps, self.count, self.seconds = first, steps, 0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.count += 1
        if self.count == self.first:
            self.started = time.process_time()
        elif self.count == self.steps:
            self.seconds = (time.process_time() - self.started) / (self.steps - self.first)
            trainer.should_stop = True


def recipe_step(steps: int, *overrides: str) -> float:
    """CPU seconds a step of a recipe, as train.py trains it, after the first ones and without evaluations.

    Nor is the checkpoint counted that a run leaves as it ends: it would have gone on for a step.
    """
    with built(*overrides, *WITHOUT_EVALUATIONS, f"trainer.max_steps={steps + 1}") as run:
        run.trainer.callbacks.append(clock := Clock(steps))  # pyright: ignore[reportAttributeAccessIssue]
        run.trainer.fit(run.recipe, run.data)
    return clock.seconds


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and greatest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.{digits}g}") for name, value in found.items()}
