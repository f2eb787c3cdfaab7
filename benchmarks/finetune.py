"""The fine-tuning recipe with cached features, against a head alone and against Lightning's BackboneFinetuning.

    python benchmarks/finetune.py

Epochs of 62 batches of 64 on the same 32 features, the same AdamW: `cached`, the recipe as train.py runs it, with all
its callbacks; `several`, the same with 31 updates a step (recipe.updates=31); `head`, a LightningModule that is nothing
but the head, on tensors in memory, under a Trainer without callbacks; `plain`, a PyTorch loop over the same tensors.
An epoch's time is the mean of the 25 after the first: what comes every so many steps is counted. All times are CPU
seconds of this process, which has one thread: other programs on the machine disturb them less than time on the clock.

Then the training time until the held-out digits of the new domain are named right at two rates, one on the way and the
one at which the recipe's own 600 batches end (the lowest of its seeds): `cached`, which computes the features first and
is charged for it; `callback`, the same backbone and head under Lightning's BackboneFinetuning, frozen throughout, with
BatchNorm's pretrained statistics as in the recipe; `default`, the same as the callback leaves it, with those of each
batch. None is charged for pretraining or for looking at the accuracy.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

sys.path.insert(0, str(ROOT / "benchmarks"))

from timing import WITHOUT_EVALUATIONS, built, prepare, spread  # noqa: E402

from recipes.parts.batches import Batches  # noqa: E402

PASS = 62  # batches of 64 in 4,000 images
EPOCHS = 26
TARGETS = (0.40, 0.45)


class Clock(L.Callback):
    """CPU seconds of every pass; ends a run after EPOCHS of them or, if given, at an accuracy of ``target``."""

    def __init__(self, data: Any, target: float | None, updates: int = 1) -> None:
        self.data, self.target, self.batches = data, target, PASS // updates
        self.passes: list[float] = []
        self.accuracies: list[float] = []
        self.count = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.count += 1
        if self.count % self.batches:
            return
        self.passes.append(time.process_time() - self.started)
        if self.target is None:
            trainer.should_stop = len(self.passes) == EPOCHS
        else:
            self.accuracies.append(self.accuracy(pl_module))
            trainer.should_stop = self.accuracies[-1] >= self.target or len(self.passes) == 60
        self.started = time.process_time()

    def until(self, target: float) -> tuple[float, int]:
        """Seconds and passes until the accuracy was ``target``."""
        passes = next(k for k, accuracy in enumerate(self.accuracies, start=1) if accuracy >= target)
        return sum(self.passes[:passes]), passes

    @torch.no_grad()
    def accuracy(self, module: L.LightningModule) -> float:
        modes = {part: part.training for part in module.modules()}
        module.eval()
        found = (module(self.data.held_out_shifted).argmax(1) == self.data.held_out_labels).float().mean().item()
        for part, mode in modes.items():
            part.training = mode
        return found


class Plain(L.LightningModule):
    """Backbone and head as one first writes them; without a backbone the head alone."""

    def __init__(self, backbone: nn.Module, head: nn.Module, lr: float) -> None:
        super().__init__()
        self.backbone, self.head, self.lr = backbone, head, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=self.lr, weight_decay=0.01, fused=True)


def trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


class Programs:
    """The programs of one seed, all with the same pretrained backbone, initial head and features."""

    def __init__(self, seed: int, folder: str) -> None:
        self.overrides = ["recipe=finetune", "stop.features=cached", f"recipe.feature_cache={folder}/{seed}.pt"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", [*self.overrides, f"seed={seed}", f"cache={ROOT / '.cache'}"])
        torch.manual_seed(seed)
        self.recipe = instantiate(config.recipe, stop=config.stop, _convert_="all")
        config.data.steps = 100 * PASS
        self.data = instantiate(config.data, _convert_="all")
        self.data.setup("fit")
        self.seed, self.lr = seed, config.recipe.optimizer.lr
        self.head = nn.Linear(self.recipe.head.in_features, 10)
        self.head.load_state_dict(self.recipe.head.state_dict())
        origin = self.recipe.source_network()
        origin.load_state_dict(self.data.pretrain(self.recipe.source_network(), self.recipe.pretrain_steps))
        self.backbone = origin.backbone.eval()

    def cached(self, target: float | None, updates: int = 1) -> Clock:
        overrides = [*self.overrides, f"recipe.updates={updates}", f"data.batch_size={64 * updates}"]
        with built(*overrides, *WITHOUT_EVALUATIONS, f"trainer.max_steps={100 * PASS}", seed=self.seed) as run:
            clock = Clock(run.data, target, updates)
            run.trainer.callbacks.append(clock)  # pyright: ignore[reportAttributeAccessIssue]
            run.trainer.fit(run.recipe, run.data)
        return clock

    def callback(self, target: float | None, statistics: str) -> Clock:
        clock = Clock(self.data, target)
        images = TensorDataset(self.data.shifted, self.data.labels)
        loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
        frozen = BackboneFinetuning(unfreeze_backbone_at_epoch=10**6)
        module = Plain(self.backbone, self.head, self.lr)
        if statistics == "kept":
            self.backbone.train = lambda mode=True: self.backbone
        else:
            self.backbone.train()
        trainer(frozen, clock).fit(module, loader)
        return clock

    def features(self) -> Batches:
        with torch.no_grad():
            features = torch.cat([self.backbone(some) for some in self.data.shifted.split(500)])
        return Batches(features, self.data.labels, batch_size=64, length=100 * PASS, seed=self.seed)

    def alone(self) -> float:
        """Seconds of a pass over the head alone, under a Trainer."""
        clock = Clock(self.data, None)
        trainer(clock).fit(Plain(nn.Identity(), self.head, self.lr), self.features())
        return statistics.fmean(clock.passes[1:])

    def plain(self) -> float:
        optimizer, passes = torch.optim.AdamW(self.head.parameters(), self.lr, weight_decay=0.01, fused=True), []
        started = time.process_time()
        for k, (x, y) in enumerate(self.features(), start=1):
            optimizer.zero_grad()
            F.cross_entropy(self.head(x), y).backward()
            optimizer.step()
            if k % PASS == 0:
                passes.append(time.process_time() - started)
                started = time.process_time()
            if k == EPOCHS * PASS:
                break
        return statistics.fmean(passes[1:])


def measure(seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        clocks = {
            "cached": Programs(seed, folder).cached(TARGETS[-1]),
            "callback": Programs(seed, folder).callback(TARGETS[-1], "kept"),
            "default": Programs(seed, folder).callback(TARGETS[-1], "batch"),
        }
        found: dict[str, float] = {
            "cached_epoch": statistics.fmean(Programs(seed, folder).cached(None).passes[1:]),
            "several_epoch": statistics.fmean(Programs(seed, folder).cached(None, updates=31).passes[1:]),
            "head_epoch": Programs(seed, folder).alone(),
            "plain_epoch": Programs(seed, folder).plain(),
        }
    found["cached_over_head"] = found["cached_epoch"] / found["head_epoch"]
    found["cached_over_plain"] = found["cached_epoch"] / found["plain_epoch"]
    found["several_over_plain"] = found["several_epoch"] / found["plain_epoch"]
    for target in TARGETS:
        for name, clock in clocks.items():
            found[f"{name}_seconds_to_{target}"], found[f"{name}_epochs_to_{target}"] = clock.until(target)
        for name in ("callback", "default"):
            ratio = found[f"{name}_seconds_to_{target}"] / found[f"cached_seconds_to_{target}"]
            found[f"{name}_over_cached_to_{target}"] = ratio
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    prepare()
    runs = [measure(seed) for seed in range(arguments.seeds)]
    found = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    if arguments.json:
        ratios = {name: spread([run[name] for run in runs]) for name in found if "_over_" in name}
        print(json.dumps({"seeds": arguments.seeds, "medians": found, "ratios": ratios}))
        return
    print(f"medians of {arguments.seeds} seeds, 1 thread; an epoch is {PASS} batches of 64")
    for name in ("cached", "several", "head", "plain"):
        print(f"  {name:<9} {found[f'{name}_epoch'] * 1e3:8.1f} ms an epoch")
    print(f"a cached epoch takes {found['cached_over_plain']:.2f} of a plain loop's over the head (bar: 2.0),", end=" ")
    print(f"{found['several_over_plain']:.2f} with 31 updates a step (bar: 1.2);", end=" ")
    print(f"{found['cached_over_head']:.2f} of the head's alone under a Trainer")
    for target in TARGETS:
        print(f"to accuracy {target}:")
        for name in ("cached", "callback", "default"):
            seconds, epochs = found[f"{name}_seconds_to_{target}"], found[f"{name}_epochs_to_{target}"]
            ratios = [run[f"{name}_seconds_to_{target}"] / run[f"cached_seconds_to_{target}"] for run in runs]
            print(f"  {name:<9} {seconds:6.2f} s in {epochs:2.0f} epochs, times as long as cached:", end=" ")
            print(" ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
