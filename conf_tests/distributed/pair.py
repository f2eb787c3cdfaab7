"""Ranks over gloo, in processes with a deadline; and noise that is shared out as the data are."""

from __future__ import annotations

import functools
import os
import queue
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from torch.overrides import TorchFunctionMode

from conf_tests.helpers import PROCESSES
from stopgrad.runner.averaging import AveragedGradients
from stopgrad.runner.launch import LOOPBACK, join


def on_two_ranks(function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
    """``function(*arguments)`` on both ranks of a group of two; what each returns, or the error that one raises."""
    return on_ranks(2, function, *arguments, seconds=seconds)


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
    """The same on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        answers = PROCESSES.Queue()
        processes = [
            PROCESSES.Process(target=_rank, args=(rank, world, folder, function, arguments, answers), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            found = dict(answers.get(timeout=seconds) for _ in processes)
        except queue.Empty:
            raise TimeoutError("the ranks wait for each other") from None
        finally:
            for process in processes:
                process.kill()
                process.join()
    for rank in range(world):
        if isinstance(found[rank], str) and found[rank].startswith("Traceback"):
            raise RuntimeError(found[rank])
    return [found[rank] for rank in range(world)]


def _rank(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], answers: Any
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    os.environ.update(LOOPBACK | {name: str(value) for name, value in said.items()})
    join(rank, world, seconds=600, init_method=f"file://{folder}/store")
    try:
        answer = function(*arguments)
    except Exception:
        answer = traceback.format_exc()
    answers.put((rank, answer))
    answers.close()
    answers.join_thread()
    with suppress(RuntimeError):
        dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly end


def trainer(strategy: Any = None, **options: Any) -> L.Trainer:
    """Of one of the ranks: quiet, without checkpoints."""
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy or AveragedGradients(),
        plugins=[TorchElasticEnvironment()],
        use_distributed_sampler=False,
        enable_model_summary=False,
        **plain | options,
    )


class Shares(TorchFunctionMode):
    """Every rank draws what one process would draw for the whole batch, and keeps the rows of its own samples."""

    DRAWS = (torch.rand, torch.randn, torch.randint)
    LIKE = (torch.rand_like, torch.randn_like)

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None or function not in (*self.DRAWS, *self.LIKE):
            return function(*args, **kwargs)
        if function in self.LIKE:
            whole = args[0].repeat(self.ranks, *[1] * (args[0].ndim - 1))
            return function(whole, *args[1:], **kwargs)[self.rank :: self.ranks]
        numbers = 2 if function is torch.randint and len(args) > 2 else 1 if function is torch.randint else 0
        bounds, size = args[:numbers], args[numbers:]
        size = tuple(size[0]) if isinstance(size[0], (tuple, list, torch.Size)) else size
        return function(*bounds, (size[0] * self.ranks, *size[1:]), **kwargs)[self.rank :: self.ranks]


class SharedNoise(Callback):
    """The noise of a run does not depend on the number of its ranks: each keeps its own rows of the whole draw."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        torch.manual_seed(0)
        step = pl_module.training_step

        @functools.wraps(step)
        def shared(*args: Any, **kwargs: Any) -> Any:
            with Shares(trainer.global_rank, trainer.world_size):
                return step(*args, **kwargs)

        pl_module.training_step = shared
