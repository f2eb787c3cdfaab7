"""What it costs to keep a loss: time a step, nodes and bytes kept, and how often the host waits for the device.

    python benchmarks/loss_logging.py

One plain training loop over the recipe's ResNet and mnist5k, in turn with each choice of `stop.history` and with
`nothing` kept; and the recipe under a Trainer with `item` and with `self_log`, which needs one. `before_backward` runs
the network once more at each step: that is its own cost. Steps of all programs are interleaved in blocks of 20. Times
are CPU seconds of this process, which has one thread: other programs on the machine disturb them less than the clock. A
synchronisation is what gives the host a number of the device's (`item`, `tolist`, `cpu` and their like).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recipes.loss_logging import SWITCHES, LossLogging  # noqa: E402
from recipes.parts.batches import Batches  # noqa: E402
from recipes.parts.domains import Domains  # noqa: E402
from stopgrad.audits.retention import kept_graphs  # noqa: E402
from stopgrad.runner.build import quiet  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402

KINDS = [kind for kind in SWITCHES["history"] if kind != "self_log"]
BLOCK = 20


class Reads(TorchFunctionMode):
    """Counts what makes the host wait for a device."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def build(kind: str, seed: int) -> LossLogging:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["recipe=loss_logging", f"stop.history={kind}"])
    torch.manual_seed(seed)
    return instantiate(config.recipe, stop=config.stop, _convert_="all")


class Loop:
    """A plain loop that keeps its losses in one way, or not at all (``nothing``)."""

    def __init__(self, kind: str, data: Domains, seed: int) -> None:
        self.kind = kind
        self.recipe = build("item" if kind == "nothing" else kind, seed)
        self.optimizer = self.recipe.configure_optimizers()
        self.batches = iter(Batches(*data.train_tensors(), batch_size=64, length=10**6, seed=seed))
        self.times: list[float] = []
        self.steps = 0

    def step(self) -> None:
        batch = next(self.batches)
        loss = self.recipe.training_loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.kind != "nothing":
            kept = self.recipe.validation_loss(batch) if self.kind == "before_backward" else loss
            self.recipe.history.keep(kept)
        self.steps += 1

    def block(self) -> None:
        started = time.process_time()
        for _ in range(BLOCK):
            self.step()
        self.times.append((time.process_time() - started) / BLOCK)

    def kept(self) -> tuple[int, int]:
        found = kept_graphs({"history": self.recipe.history}, exclude=self.recipe.parameters())
        return sum(kept.nodes for kept in found), sum(kept.bytes for kept in found)

    def counts(self) -> dict[str, float]:
        """Nodes, bytes and synchronisations a step, over 100 more steps."""
        before = self.kept()
        with Reads() as reads:
            for _ in range(100):
                self.step()
        nodes, size = (now - then for now, then in zip(self.kept(), before, strict=True))
        return {"nodes_a_step": nodes / 100, "bytes_a_step": size / 100, "synchronisations_a_step": reads.count / 100}


class Stopwatch(L.Callback):
    """Seconds of every step from the second on."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.process_time() - self.started)


def under_a_trainer(kind: str, data: Domains, seed: int, steps: int) -> float:
    """Median seconds of a step."""
    watch = Stopwatch()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=[watch], enable_model_summary=False, **options
    )
    batches = Batches(*data.train_tensors(), batch_size=64, length=steps, seed=seed)
    trainer.fit(build(kind, seed), batches)
    return statistics.median(watch.times[1:])


def measure(data: Domains, seed: int, blocks: int) -> dict[str, Any]:
    loops = {kind: Loop(kind, data, seed) for kind in ("nothing", *KINDS)}
    for loop in loops.values():
        loop.block()  # warm up
        loop.times.clear()
    for turn in range(blocks):
        order = list(loops.values())
        for loop in order[turn % len(order) :] + order[: turn % len(order)]:
            loop.block()
    seconds = {kind: statistics.median(loop.times) for kind, loop in loops.items()}
    trainer = {kind: under_a_trainer(kind, data, seed, blocks * BLOCK) for kind in ("item", "self_log")}
    return {
        "milliseconds": {kind: value * 1e3 for kind, value in seconds.items()},
        "ratio": {kind: value / seconds["nothing"] for kind, value in seconds.items()},
        "self_log_over_item": trainer["self_log"] / trainer["item"],
        "counts": {kind: loops[kind].counts() for kind in KINDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=8, help=f"of {BLOCK} steps, for each program and seed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    warnings.filterwarnings("ignore")
    register()
    data = Domains(domain="source", cache=str(ROOT / ".cache"))
    data.setup("fit")
    runs = [measure(data, seed, arguments.blocks) for seed in range(arguments.seeds)]

    def median(get: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(map(get, runs)), 3)

    found: dict[str, Any] = {"seeds": arguments.seeds, "threads": 1, "arms": {}}
    for kind in ("nothing", *KINDS):
        found["arms"][kind] = {
            "milliseconds": median(lambda run, k=kind: run["milliseconds"][k]),
            "over_nothing": median(lambda run, k=kind: run["ratio"][k]),
            **runs[0]["counts"].get(kind, {}),
        }
    found["self_log_over_item"] = median(lambda run: run["self_log_over_item"])
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"medians of {arguments.seeds} seeds, 1 thread; bar: item and detach at most 1.05")
    print(f"{'':<16} ms a step  over nothing  nodes a step  bytes a step  synchronisations a step")
    for kind, row in found["arms"].items():
        print(
            f"{kind:<16} {row['milliseconds']:9.2f}  {row['over_nothing']:12.3f}  {row.get('nodes_a_step', 0):12.2f}"
            f"  {row.get('bytes_a_step', 0):12.0f}  {row.get('synchronisations_a_step', 0):23.2f}"
        )
    print(f"under a Trainer, a step with self.log takes {found['self_log_over_item']} of one with item")


if __name__ == "__main__":
    main()
