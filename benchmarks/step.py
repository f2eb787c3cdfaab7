"""What a step of a recipe costs over its plain script: CPU milliseconds of one thread, in turn, medians of the repeats.

    python benchmarks/step.py tbptt --steps 60

`plain` is benchmarks/plain/NAME.py; `recipe`, the recipe in a Trainer with the callbacks, bar and logger that train.py
gives it, without evaluations, from the second fifth of its steps on. Both count their own training alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stopgrad.lightning import FlowAudit  # noqa: E402
from stopgrad.runner.build import quiet  # noqa: E402
from stopgrad.runner.meter import Meter  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402
from stopgrad.runner.streams import RandomStreams  # noqa: E402


class Clock(L.Callback):
    """CPU seconds a step, from the second fifth of so many steps on."""

    def __init__(self, steps: int) -> None:
        self.first, self.steps = steps // 5, steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.first:
            self.started = time.process_time()
        elif trainer.global_step == self.steps:
            self.step = (time.process_time() - self.started) / (self.steps - self.first)


def plain(name: str, steps: int) -> float:
    """Seconds a step of the plain script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "plain" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script)["time"] = SimpleNamespace(perf_counter=time.process_time)
    return 1 / script.train(steps=steps)["steps_per_second"]


def recipe(name: str, steps: int) -> float:
    """Seconds a step of the recipe."""
    config = compose("train", [f"recipe={name}", f"trainer.max_steps={steps}", f"cache={ROOT / '.cache'}"])
    L.seed_everything(0, verbose=False)
    data = instantiate(config.data, _convert_="all")
    module = instantiate(config.recipe, stop=config.stop, _convert_="all")
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=steps,
            callbacks=[RandomStreams(), Meter(), FlowAudit(), TQDMProgressBar(refresh_rate=20), clock := Clock(steps)],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data)
    return clock.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a recipe")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        found = [
            (plain(options.name, options.steps), recipe(options.name, options.steps)) for _ in range(options.repeats)
        ]
    script, ours = (1e3 * statistics.median(each) for each in zip(*found, strict=True))
    ratio = statistics.median(b / a for a, b in found)
    print(f"{options.name}: plain {script:.3f} ms, recipe {ours:.3f} ms a step, {ratio:.2f}x")


if __name__ == "__main__":
    main()
