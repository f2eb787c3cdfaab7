"""Every recipe on a GPU, or with --device cpu on a CPU: does it run, how fast, what does it wait for?

    python benchmarks/gpu.py                         # all recipes on the GPU
    python benchmarks/gpu.py gan td3 --device cpu    # what can be tested without one

Columns: milliseconds a step as train.py runs it; the same over a plain loop that calls the same training_step; waits
for the device in a step that does not log (on a GPU as torch.cuda counts them, on a CPU the operations that would wait:
`.item()`, `nonzero` and the like); peak memory; and, with --compile, milliseconds a step after torch.compile over
without.
Environments of `actor_critic` and `td3` live on the CPU: their waits are the actions that they are given.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stopgrad.lightning import FlowAudit  # noqa: E402
from stopgrad.lightning.lightning_internals import batch_number  # noqa: E402
from stopgrad.runner.build import build_recipe, compile_networks, quiet  # noqa: E402
from stopgrad.runner.declared import recipe_configs  # noqa: E402
from stopgrad.runner.finite import Finite  # noqa: E402
from stopgrad.runner.meter import Meter  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402
from stopgrad.runner.project import open_project  # noqa: E402
from stopgrad.runner.streams import RandomStreams  # noqa: E402

WARM_UP = 10
open_project(ROOT)
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


class Waits(TorchDispatchMode):
    """Counts the operations after which the CPU waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in WAITS
        return function(*args, **(kwargs or {}))


class Watch(L.Callback):
    """Seconds a step after the warm-up, and the waits of one step that does not log."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.seconds, self.waits = steps, device, 0.0, 0
        self.counter: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if batch_number(trainer) != self.steps + 1:  # after what is timed
            return
        if self.device == "cpu":
            self.counter = Waits()
        else:
            self.counter = warnings.catch_warnings(record=True)
            torch.cuda.set_sync_debug_mode("warn")
        self.caught = self.counter.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = batch_number(trainer)
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.waits = self.counter.count if self.device == "cpu" else len(self.caught)
            if self.device != "cpu":
                torch.cuda.set_sync_debug_mode("default")
            trainer.should_stop, self.counter = True, None
        elif step in (WARM_UP, self.steps):
            finish(self.device)
            self.seconds = time.perf_counter() - self.seconds


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def composed(recipe: str, device: str, steps: int) -> DictConfig:
    overrides = [f"recipe={recipe}", f"trainer.max_steps={steps}", f"cache={ROOT / '.cache'}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [*overrides, f"trainer={'cpu' if device == 'cpu' else 'gpu'}"])


def parts(config: DictConfig) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build_recipe(config), instantiate(config.data, _convert_="all")


def as_run(config: DictConfig, device: str, steps: int, compiled: bool) -> Watch:
    """Train as train.py does; no validation, no files."""
    recipe, data = parts(config)
    if compiled:
        compile_networks(recipe)
    watch = Watch(steps, device)
    never = 10**9
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            config.trainer,
            callbacks=[RandomStreams(), Meter(), Finite(at_once=False), FlowAudit(on_violation="warn"), watch],
            default_root_dir=folder,
            limit_val_batches=0,
            log_every_n_steps=never,
            **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
            _convert_="all",
        )
        trainer.fit(recipe, data)
    watch.seconds /= steps - WARM_UP
    return watch


def plain(config: DictConfig, device: str, steps: int) -> float:
    """Seconds a step of a loop that calls the same training_step, without Lightning."""
    recipe, data = parts(config)
    recipe.to(device)
    stub: Any = SimpleNamespace(log_every_n_steps=10**9, global_step=0, max_steps=steps, datamodule=data, world_size=1)
    stub.strategy, stub.global_rank, stub.logger = SimpleNamespace(root_device=torch.device(device)), 0, None
    recipe.trainer = data.trainer = stub
    data.prepare_data()
    data.setup("fit")
    recipe.setup("fit")
    made = recipe.configure_optimizers()
    optimizers = made if isinstance(made, list) else [made]
    for optimizer in optimizers:
        optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: optimizers if len(optimizers) > 1 else optimizers[0]
    recipe.manual_backward = lambda loss, **options: loss.backward(**options)
    recipe.log = recipe.log_dict = lambda *args, **kwargs: None
    stub.train_dataloader = data.train_dataloader()
    started = 0.0
    for k, batch in enumerate(stub.train_dataloader):
        stub.global_step = k
        loss = recipe.training_step(batch, k)
        if recipe.automatic_optimization:
            optimizers[0].zero_grad()
            (loss["loss"] if isinstance(loss, dict) else loss).backward()
            optimizers[0].step()
        if k + 1 in (WARM_UP, steps):
            finish(device)
            started = time.perf_counter() - started
        if k + 1 == steps:
            break
    return started / (steps - WARM_UP)


def measured(recipe: str, device: str, steps: int, compiled: bool) -> dict[str, Any]:
    config = composed(recipe, device, 10 * steps)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    watch = as_run(config, device, steps, False)
    found: dict[str, Any] = {"recipe": recipe, "milliseconds": watch.seconds * 1e3, "waits": watch.waits}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["peak_memory"] = resident if device == "cpu" else torch.cuda.max_memory_allocated()
    found["over_plain"] = watch.seconds / plain(config, device, steps)
    if compiled:
        found["compiled"] = as_run(config, device, steps, True).seconds / watch.seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(recipe_configs()))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu tests the program")
    quiet()
    warnings.filterwarnings("ignore")
    register()
    rows = []
    for recipe in arguments.recipes:
        rows.append(measured(recipe, arguments.device, arguments.steps, arguments.compile))
        if not arguments.json:
            row = rows[-1]
            print(
                f"{recipe:16} {row['milliseconds']:8.2f} ms a step, {row['over_plain']:.2f} of a plain loop's,", end=" "
            )
            print(f"{row['waits']:3} waits, {row['peak_memory'] >> 20} MiB", end="")
            print(f", compiled {row['compiled']:.2f}" if "compiled" in row else "", flush=True)
    if arguments.json:
        print(json.dumps({"device": arguments.device, "steps": arguments.steps, "recipes": rows}))


if __name__ == "__main__":
    main()
