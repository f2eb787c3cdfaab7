"""Steps per second of the GAN recipe, against a plain loop and against Lightning as one would first write it.

    python benchmarks/gan.py                      # 8x8 digits, MLP
    python benchmarks/gan.py --network dcgan      # 28x28 mnist5k

Three programs train the same networks on the same data with the same batch and the same optimiser (fused Adam), in
turn, in one process: `recipe`, as train.py runs it, with its callbacks, bar and TensorBoard logger; `plain`, a PyTorch
loop over tensors in memory, with the discriminator live in the generator's loss, as loops are mostly written, and once
more with it frozen; `first`, a LightningModule with a DataLoader over a TensorDataset, wrapped optimisers, the
discriminator live, self.log at every step and Lightning's own progress bar. The first 20 steps are not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recipes.gan import GAN  # noqa: E402
from recipes.parts.averages import follow  # noqa: E402
from recipes.parts.batches import Batches  # noqa: E402
from recipes.parts.images import Images  # noqa: E402
from stopgrad.lightning import FlowAudit  # noqa: E402
from stopgrad.runner.build import quiet  # noqa: E402
from stopgrad.runner.meter import Meter  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402
from stopgrad.runner.streams import RandomStreams  # noqa: E402

WARM_UP = 20


class Clock(L.Callback):
    """Seconds a step, from the end of step ``WARM_UP`` to the end of the last."""

    def __init__(self, steps: int) -> None:
        self.steps, self.count, self.seconds = steps, 0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.count += 1
        if self.count == WARM_UP:
            self.started = time.perf_counter()
        if self.count == self.steps:
            self.seconds = (time.perf_counter() - self.started) / (self.steps - WARM_UP)
            trainer.should_stop = True


class First(L.LightningModule):
    """The method as a Lightning user would first write it, around the recipe's networks and losses."""

    def __init__(self, gan: GAN) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gan = gan

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        g_optimizer, d_optimizer = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        for reals in batch[0].chunk(self.gan.n_critic):
            d_loss = self.gan.d_loss(reals)
            d_optimizer.zero_grad()
            self.manual_backward(d_loss)
            d_optimizer.step()
        g_loss = self.gan.g_loss(reals)
        g_optimizer.zero_grad()
        self.manual_backward(g_loss)
        g_optimizer.step()
        follow(self.gan.average, self.gan.generator, self.gan.ema_decay)
        self.log("d_loss", d_loss, prog_bar=True)
        self.log("g_loss", g_loss, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.gan.configure_optimizers()


def trainer(folder: str, *callbacks: L.Callback) -> L.Trainer:
    """A Trainer with Lightning's defaults; the clock ends it."""
    return L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def recipe(gan: GAN, data: Images, steps: int, folder: str) -> float:
    clock = Clock(steps)
    gan.setup = lambda stage: None  # no sample quality: what is timed is the training
    batches = Batches(data.images, batch_size=data.batch_size, length=steps)
    trainer(folder, RandomStreams(), Meter(), FlowAudit(), TQDMProgressBar(refresh_rate=20), clock).fit(gan, batches)
    return clock.seconds


def plain(gan: GAN, data: Images, steps: int, folder: str) -> float:
    g_optimizer, d_optimizer = gan.configure_optimizers()
    started = 0.0
    for k, batch in enumerate(Batches(data.images, batch_size=data.batch_size, length=steps)):
        for reals in batch.chunk(gan.n_critic):
            d_loss = gan.d_loss(reals)
            d_optimizer.zero_grad()
            d_loss.backward()
            d_optimizer.step()
        g_loss = gan.g_loss(reals)
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        follow(gan.average, gan.generator, gan.ema_decay)
        if k == WARM_UP - 1:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (steps - WARM_UP)


def first(gan: GAN, data: Images, steps: int, folder: str) -> float:
    clock = Clock(steps)
    loader = DataLoader(TensorDataset(data.images), batch_size=data.batch_size, shuffle=True, drop_last=True)
    trainer(folder, clock).fit(First(gan), loader)
    return clock.seconds


# name: (program, the discriminator's boundary in G's loss)
PROGRAMS: dict[str, tuple[Callable[[GAN, Images, int, str], float], str]] = {
    "recipe": (recipe, "freeze"),
    "plain": (plain, "none"),
    "plain, D frozen": (plain, "freeze"),
    "first": (first, "none"),
}


SIMPLE = ["recipe.loss=non_saturating", "recipe.penalty=none", "recipe.n_critic=1"]


def g_step(gan: GAN, reals: Tensor, repeats: int = 200) -> float:
    """Median seconds of G's forward and backward."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        gan.g_loss(reals).backward()
        times.append(time.perf_counter() - started)
        gan.zero_grad()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["mlp", "dcgan"], default="mlp")
    parser.add_argument("--simple", action="store_true", help="non-saturating loss, no penalty, one step of D a batch")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet()
    warnings.filterwarnings("ignore")
    register()
    overrides = ["data=mnist5k", "recipe.network=dcgan", "recipe.width=16"] if arguments.network == "dcgan" else []
    overrides += SIMPLE if arguments.simple else []

    def build(boundary: str) -> GAN:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", [*overrides, f"stop.discriminator={boundary}", f"cache={ROOT / '.cache'}"])
        torch.manual_seed(0)
        return instantiate(config.recipe, stop=config.stop, _convert_="all")

    n_critic = build("freeze").n_critic
    dcgan = arguments.network == "dcgan"
    shape = (1, 28, 28) if dcgan else (1, 8, 8)
    source = "mnist5k" if dcgan else "digits"
    data = Images(name=source, shape=shape, batch_size=64 * n_critic, cache=str(ROOT / ".cache"))
    data.setup("fit")
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    g_seconds: dict[str, list[float]] = {"freeze": [], "none": []}
    for _ in range(arguments.repeats):
        for name, (program, boundary) in PROGRAMS.items():
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                seconds[name].append(program(build(boundary), data, arguments.steps, folder))
        for boundary, times in g_seconds.items():
            times.append(g_step(build(boundary), data.images[:64]))
    report(arguments, {name: statistics.median(times) for name, times in seconds.items()}, g_seconds)


def report(arguments: argparse.Namespace, median: dict[str, float], g_seconds: dict[str, list[float]]) -> None:
    gain = statistics.median(g_seconds["none"]) / statistics.median(g_seconds["freeze"])
    found = {
        "network": arguments.network,
        "simple": arguments.simple,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "microseconds_a_step": {name: round(value * 1e6, 1) for name, value in median.items()},
        "recipe_over_plain": round(median["recipe"] / median["plain"], 3),
        "recipe_over_plain_frozen": round(median["recipe"] / median["plain, D frozen"], 3),
        "first_over_recipe": round(median["first"] / median["recipe"], 3),
        "overhead_microseconds": round((median["recipe"] - median["plain, D frozen"]) * 1e6, 1),
        "g_step_none_over_freeze": round(gain, 3),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    name = arguments.network + (", simple" if arguments.simple else "")
    print(f"{name}: medians of {arguments.repeats} interleaved repeats, {arguments.threads} thread(s)")
    for name, value in median.items():
        print(f"  {name:<16} {1 / value:8.1f} steps/s  {value * 1e6:8.1f} us a step")
    print(f"recipe takes {found['recipe_over_plain']} of the plain loop's time (bar: 1.10)")
    print(f"       and {found['recipe_over_plain_frozen']} of a plain loop's that freezes D too:", end=" ")
    print(f"Lightning costs {found['overhead_microseconds']} us a step")
    print(f"first takes {found['first_over_recipe']} of the recipe's time (bar: 1.25)")
    print(f"G's step: none takes {found['g_step_none_over_freeze']} of freeze's time")


if __name__ == "__main__":
    main()
