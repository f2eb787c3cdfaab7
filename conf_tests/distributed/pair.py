"""Two ranks over gloo, in two processes with a deadline; and noise that is shared out as the data are."""

from __future__ import annotations

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
    with tempfile.TemporaryDirectory() as folder:
        answers = PROCESSES.Queue()
        processes = [
            PROCESSES.Process(target=_rank, args=(rank, folder, function, arguments, answers), daemon=True)
            for rank in (0, 1)
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
    for rank in (0, 1):
        if isinstance(found[rank], str) and found[rank].startswith("Traceback"):
            raise RuntimeError(found[rank])
    return [found[0], found[1]]


def _rank(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], answers: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update(LOOPBACK | {name: str(value) for name, value in said.items()})
    join(dist.FileStore(f"{folder}/store", 2), rank, 2, seconds=600)
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
    """Of one of the two ranks: quiet, without checkpoints."""
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        devices=2,
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(0)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.mode = Shares(trainer.global_rank, trainer.world_size)
        self.mode.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self.mode.__exit__(None, None, None)

    def on_exception(self, *args: Any) -> None:
        self.on_train_batch_end()
