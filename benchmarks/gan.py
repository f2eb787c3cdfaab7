"""CPU time of a step of the GAN recipe, against a plain loop and against Lightning as one would first write it.

    python benchmarks/gan.py                      # 8x8 digits, MLP
    python benchmarks/gan.py --simple             # non-saturating loss, no penalty, one step of D a batch
    python benchmarks/gan.py --network dcgan      # 28x28 mnist5k

Three programs train the same networks on the same data with the same batch and the same optimiser (fused Adam), in
turn, in one process: `recipe`, what train.py trains, with its callbacks and logger, without evaluations; `plain`, a
PyTorch loop over tensors in memory, with the discriminator live in the generator's loss, as loops are mostly written,
and once more with it frozen; `first`, a LightningModule with a DataLoader over a TensorDataset, wrapped optimisers, the
discriminator live and self.log at every step. The first 50 steps are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from timing import FIRST, Clock, built, prepare, recipe_step, spread  # noqa: E402

from recipes.gan import GAN  # noqa: E402
from recipes.parts.averages import follow  # noqa: E402
from recipes.parts.batches import Batches  # noqa: E402

SIMPLE = ["recipe.loss=non_saturating", "recipe.penalty=none", "recipe.n_critic=1", "data.batch_size=64"]
DCGAN = ["data=mnist5k", "recipe.network=dcgan", "recipe.width=16"]
BARS = {"default": 1.04, "simple": 1.10}


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

    def configure_optimizers(self) -> list[Any]:
        return self.gan.configure_optimizers()


def recipe(steps: int, overrides: Sequence[str]) -> float:
    return recipe_step(steps, "recipe=gan", *overrides)


def plain(steps: int, overrides: Sequence[str], boundary: str = "none") -> float:
    with built("recipe=gan", f"stop.discriminator={boundary}", *overrides) as run:
        gan: Any = run.recipe
        images, size = images_of(run.data)
        g_optimizer, d_optimizer = gan.configure_optimizers()
        for k, batch in enumerate(Batches(images, batch_size=size, length=steps)):
            if k == FIRST:
                started = time.process_time()
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
        return (time.process_time() - started) / (steps - FIRST)


def frozen(steps: int, overrides: Sequence[str]) -> float:
    return plain(steps, overrides, "freeze")


def first(steps: int, overrides: Sequence[str]) -> float:
    with built("recipe=gan", "stop.discriminator=none", *overrides) as run, tempfile.TemporaryDirectory() as folder:
        images, size = images_of(run.data)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            callbacks=[clock := Clock(steps)],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(First(run.recipe), DataLoader(TensorDataset(images), size, shuffle=True, drop_last=True))  # pyright: ignore
    return clock.seconds


def images_of(data: Any) -> tuple[Tensor, int]:
    """(N, C, H, W), and how many a batch."""
    data.prepare_data()
    data.setup("fit")
    return data.images, data.batch_size


PROGRAMS: dict[str, Callable[[int, Sequence[str]], float]] = {
    "recipe": recipe,
    "plain": plain,
    "plain, D frozen": frozen,
    "first": first,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["mlp", "dcgan"], default="mlp")
    parser.add_argument("--simple", action="store_true")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    prepare()
    overrides = (DCGAN if options.network == "dcgan" else []) + (SIMPLE if options.simple else [])
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for _ in range(options.repeats):
            for name, program in PROGRAMS.items():
                seconds[name].append(program(options.steps, overrides))
    found: dict[str, Any] = {"network": options.network, "simple": options.simple, "repeats": options.repeats}
    found["microseconds_a_step"] = {name: spread([1e6 * each for each in times]) for name, times in seconds.items()}
    for one, other in (("recipe", "plain"), ("recipe", "plain, D frozen"), ("first", "recipe")):
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        found[f"{one} over {other}"] = spread(ratios)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.network}{', simple' if options.simple else ''}: medians of {options.repeats} repeats, in turn")
    for name, times in seconds.items():
        print(f"  {name:<16} {1e6 * statistics.median(times):8.1f} us a step")
    bar = BARS["simple" if options.simple else "default"]
    print(f"recipe takes {found['recipe over plain']['median']:.3f} of the plain loop's time (bar: {bar:.2f})")
    print(f"       and {found['recipe over plain, D frozen']['median']:.3f} of a plain loop's that freezes D too")
    print(f"first takes {found['first over recipe']['median']:.3f} of the recipe's time")


if __name__ == "__main__":
    main()
