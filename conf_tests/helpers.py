"""What several tests need: run train.py as a user does, build recipes from their configs, take a loss's gradients."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from stopgrad.runner.names import register
from stopgrad.runner.project import open_project

ROOT = Path(__file__).parents[1]
open_project(ROOT)


PROCESSES = multiprocessing.get_context("forkserver")  # what takes seconds to import is imported once
PROCESSES.set_forkserver_preload(
    [
        "lightning.pytorch",
        "torchmetrics.image.fid",
        "sklearn.datasets",
        "torch.utils.tensorboard",
        "stopgrad.runner.train",
        "stopgrad.runner.record",
        "stopgrad.watch.run",
        "stopgrad.watch.rules",
    ]
)


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it printed."""

    returncode: int | None
    stdout: str
    stderr: str


def train(*overrides: str, cwd: Path, seconds: float = 300, **env: str) -> Ran:
    """``python train.py overrides...`` in a process of its own, in the folder ``cwd``, with the checkout's cache.

    It is killed after so many ``seconds``.
    """
    return script(ROOT / "train.py", *overrides, f"cache={ROOT / '.cache'}", cwd=cwd, seconds=seconds, **env)


def script(file: Path, *arguments: str, cwd: Path, seconds: float = 300, **env: str) -> Ran:
    """``python file arguments...`` in a process of its own, in the folder ``cwd``, killed after so many ``seconds``."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = PROCESSES.Process(target=_run, args=([str(file), *arguments], cwd, env, out, err))
        process.start()
        process.join(seconds)
        process.kill()
        return Ran(process.exitcode, out.read_text(), err.read_text())


def start(*overrides: str, cwd: Path, out: Path, err: Path, **env: str) -> Any:
    """The process of :func:`train`, on its way; what it prints goes to the files ``out`` and ``err``."""
    command = [str(ROOT / "train.py"), *overrides, f"cache={ROOT / '.cache'}"]
    process = PROCESSES.Process(target=_run, args=(command, cwd, env, out, err))
    process.start()
    return process


def wait_for(there: Callable[[], bool], process: Any, seconds: float = 120) -> bool:
    """Until ``there()``; False where the process ends before, or the time does."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if there():
            return True
        time.sleep(0.0002)
    return there()


def _run(command: list[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path) -> None:
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(cwd)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = command
    runpy.run_path(sys.argv[0], run_name="__main__")


def result(folder: Path) -> dict[str, Any]:
    """The ``result.json`` of the run directory ``folder``."""
    return json.loads((folder / "result.json").read_text())


def compare(name: str, *overrides: str, cwd: Path, seconds: float = 1800) -> dict[str, Any]:
    """``python train.py -m compare=name overrides...`` into ``cwd/sweep``: its ``comparison.json``, arms by name."""
    ran = train("-m", f"compare={name}", *overrides, "hydra.sweep.dir=sweep", cwd=cwd, seconds=seconds)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((cwd / "sweep" / "comparison.json").read_text())
    return content | {"arms": {arm["name"]: arm for arm in content["arms"]}}


@functools.cache
def comparison(name: str) -> dict[str, Any]:
    """All of ``compare=name``, which takes minutes; once for all tests of this process."""
    with tempfile.TemporaryDirectory() as folder:
        return compare(name, cwd=Path(folder), seconds=3600)


def final(name: str, arm: str, metric: str) -> list[float]:
    """The metric's final value in the arm of ``compare=name``, by seed."""
    return list(comparison(name)["arms"][arm]["metrics"][metric]["values"].values())


def config(*overrides: str) -> DictConfig:
    """The composed config of a run."""
    register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", list(overrides))


def build_recipe(*overrides: str) -> Any:
    """A recipe's module as train.py builds it, without a trainer."""
    composed = config(*overrides)
    torch.manual_seed(composed.seed)
    return instantiate(composed.recipe, stop=composed.stop, _convert_="all")


def trained(steps: int, *overrides: str, recipe: Any = None) -> Any:
    """A recipe after so many batches of its data by its own training_step, without Lightning around it.

    ``recipe`` is one that was built and changed before, if any.
    """
    composed = config(*overrides, f"trainer.max_steps={steps}")
    recipe = build_recipe(*overrides) if recipe is None else recipe
    data = instantiate(composed.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    made = recipe.configure_optimizers()
    ours = made if isinstance(made, list) else [made]
    for optimizer in ours:
        optimizer.optimizer = optimizer  # as Lightning's wrapper holds it
    recipe.optimizers = lambda: made
    recipe.manual_backward = lambda loss: loss.backward()
    recipe.log_dict = recipe.log = lambda *args, **kwargs: None
    for k, batch in enumerate(data.train_dataloader()):
        recipe.trainer = SimpleNamespace(log_every_n_steps=10**9, global_step=k, datamodule=data)
        loss = recipe.training_step(batch, k)
        if recipe.automatic_optimization:
            (optimizer,) = ours
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return recipe


def norms(loss: Tensor, groups: Mapping[str, nn.Module]) -> dict[str, float | None]:
    """Norm of the loss's gradient in each group; None where nothing reaches it."""
    found: dict[str, float | None] = {}
    for name, module in groups.items():
        gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
        reached = [g for g in gradients if g is not None]
        found[name] = float(torch.stack([g.norm() for g in reached]).norm()) if reached else None
    return found
