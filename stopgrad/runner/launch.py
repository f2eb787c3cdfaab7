"""The processes of one run, which PyTorch's elastic agent (what torchrun is made of) starts, watches and ends.

``python train.py trainer=ddp trainer.devices=2`` composes and checks the config and hands it to two processes of its
own; those of a sweep get one arm after the other. Under torchrun, or Slurm's srun, the ranks are there already: rank 0
composes, the others take its config.

On one machine no port is opened to the network: the ranks meet in a file and speak over the loopback interface.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stopgrad.runner import names
from stopgrad.runner.errors import InputError, RunFailed, wants_traceback
from stopgrad.runner.progress import Sweep
from stopgrad.runner.safety import guard
from stopgrad.runner.sweep import take_part

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "NCCL_SOCKET_IFNAME": "lo"}
PRELOAD = ["lightning.pytorch", "torch.utils.tensorboard", "stopgrad.runner.build", "stopgrad.runner.record"]
OURS = "stopgrad-ranks-"  # so begin the names of runs that are started here
PATIENCE = 8  # seconds that a rank which lost another waits to be ended, so that the other's reason is the one told
SHUTDOWN = "12"  # seconds in which a rank that is asked to end has saved


class Job(NamedTuple):
    """One run: its pinned config, and Hydra's, which says where it goes."""

    config: DictConfig
    hydra: DictConfig

    @classmethod
    def of(cls, config: DictConfig) -> Job:
        hydra = OmegaConf.create({"hydra": HydraConfig.get()})
        OmegaConf.set_readonly(hydra, True)
        return cls(config, hydra)

    @property
    def folder(self) -> Path:
        return Path(self.hydra.hydra.runtime.output_dir)

    def enter(self) -> None:
        setup_globals()  # the resolvers of Hydra's own config
        HydraConfig.instance().set_config(self.hydra)


class RankLost(RunFailed):
    """An exchange ended because another rank has; that one knows why."""


def ranks_are_there() -> bool:
    """Whether torchrun or srun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or under_srun()


def under_srun() -> bool:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def started_here() -> bool:
    """Whether this process is a rank that :func:`launch` has started: its agent tells how a run ends."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OURS)


def adopt_srun() -> None:
    """Put what Slurm says of this rank in torchrun's words."""
    if under_srun():
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        said = {"RANK": slurm.global_rank(), "LOCAL_RANK": slurm.local_rank(), "GROUP_RANK": slurm.node_rank()}
        said |= {"WORLD_SIZE": slurm.world_size(), "LOCAL_WORLD_SIZE": os.environ["SLURM_NTASKS_PER_NODE"]}
        said |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port}
        os.environ.update({name: str(value) for name, value in said.items()})


def follows() -> bool:
    """Whether this process takes its config from rank 0."""
    return ranks_are_there() and int(os.environ["RANK"]) > 0


def world_size(config: DictConfig) -> int:
    """How many processes the config asks for."""
    return int(config.trainer.devices) * int(config.trainer.get("num_nodes", 1)) if averages(config) else 1


def averages(config: DictConfig) -> bool:
    """Whether the trainer is one of several processes."""
    return isinstance(config.trainer.get("strategy"), DictConfig)


def check_ranks(config: DictConfig) -> None:
    """Refuse numbers of devices that this launch cannot give.

    Raises:
        InputError: with the key and what is allowed.
    """
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    starter = "srun" if under_srun() else "torchrun"
    for key, value in (("devices", devices), ("num_nodes", nodes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"trainer.{key}={value}: choose a number from 1")
    if not averages(config):
        if devices * nodes > 1:
            raise InputError(f"trainer.devices={devices}: several processes need trainer=ddp")
        if ranks_are_there():
            raise InputError(f"trainer.strategy: under {starter} every run needs trainer=ddp")
        return
    if not ranks_are_there():
        if nodes > 1:
            raise InputError(f"trainer.num_nodes={nodes}: several machines need torchrun; see docs/distributed.md")
        return
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if (devices, nodes) != (local, world // local):
        raise InputError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}: {starter} started {local} ranks on each of "
            f"{world // local} machines; write trainer.devices={local} trainer.num_nodes={world // local}"
        )


def launch(one_run: Callable[..., Any], jobs: list[Job]) -> None:
    """Run the jobs one after the other, on ranks of this machine that are started once for all jobs of a kind.

    In a sweep a job that fails is a result; the ranks are started anew for those after it.

    Raises:
        SystemExit: a single run failed, or the ranks were asked to end.
    """
    kinds = groupby(jobs, lambda job: (world_size(job.config), job.config.trainer.restarts, job.config.trainer.timeout))
    for _, kind in kinds:
        left = list(kind)
        while left:
            left = left[_launch(one_run, left) :]


def _launch(one_run: Callable[..., Any], jobs: list[Job]) -> int:
    """Start the ranks, which run the jobs until one fails. Returns how many are done with."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    from stopgrad.runner.record import record_for_ranks, since

    for name in () if wants_traceback() else ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a store that would listen on all interfaces
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN)  # read from torch 2.13 on
    multiprocessing.set_forkserver_preload(PRELOAD)
    trainer, began = jobs[0].config.trainer, time.time()
    with TemporaryDirectory(prefix=OURS) as folder, handlers_kept():
        how = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=trainer.devices,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/agent",
            rdzv_configs={"store_type": "file", "keep_alive_interval": 3600},  # there is no other agent to watch
            local_addr="127.0.0.1",
            max_restarts=trainer.restarts,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(folder, local_ranks_filter={0}),
        )
        try:
            elastic_launch(how, _rank)(one_run, jobs, folder, began, names.COMMON, Sweep.now)
            return len(jobs)
        except SignalException as error:
            rank, failure, asked = 0, None, int(error.sigval)
        except ChildFailedError as error:
            (rank, failure), asked = error.get_first_failure(), 0
    ended = [since(job.folder, began).get("status") for job in jobs]
    done = next((number for number, status in enumerate(ended) if status != "finished"), len(jobs))
    if done == len(jobs):
        return done  # the training was over
    jobs[done].enter()
    if failure is None or (ended[done] == "interrupted" and failure.exitcode > 128):
        record_for_ranks(jobs[done].config, began, "interrupted")
        raise SystemExit(failure.exitcode if failure else 128 + asked)
    message = record_for_ranks(jobs[done].config, began, "raised", *_reason(rank, failure))
    if wants_traceback() and isinstance(told := failure.error_file_data["message"], dict):
        print(told["extraInfo"]["py_callstack"], file=sys.stderr)
    if HydraConfig.get().mode != RunMode.MULTIRUN or not message.startswith("stop."):
        print(f"error: {message}", file=sys.stderr)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise SystemExit(1)
    return done + 1


def _reason(rank: int, failure: Any) -> tuple[str, str]:
    """The kind of a rank's failure, and what to say of it in one line."""
    if failure.exitcode < 0:
        return "RankKilled", f"rank {rank} was ended by {failure.signal_name()}"
    told = failure.error_file_data["message"]
    if not isinstance(told, dict):
        return "RankEnded", f"rank {rank} ended with status {failure.exitcode}"
    line = told["message"].partition("\n")[0]
    return line.partition(":")[0], f"rank {rank}: {line}"


@contextmanager
def handlers_kept() -> Iterator[None]:
    """The agent sets handlers of signals, in a main thread, and leaves them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _rank(one_run: Callable[..., Any], jobs: list[Job], folder: str, began: float, *state: Any) -> None:
    """The life of a rank that the agent has started: job after job; started again, what is left of them."""
    import torch.distributed as dist

    from stopgrad.runner.record import since
    from stopgrad.runner.terminal import say

    os.setsid()  # Ctrl-C in the terminal reaches the agent alone, which hands it on
    threading.Thread(target=_end_with_agent, daemon=True).start()
    take_part(*state)
    guard()
    again, config = os.environ["TORCHELASTIC_RESTART_COUNT"], jobs[0].config
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ.update({name: value for name, value in LOOPBACK.items() if name not in os.environ})
    try:
        join(dist.FileStore(f"{folder}/ranks-{again}", world), rank, world, config.trainer.timeout)
        for job in jobs:
            job.enter()
            if again == "0":
                one_run(job.config)
            elif since(job.folder, began).get("status") != "finished":
                last = last_checkpoint(job.config, began)
                if rank == 0:
                    say(f"restart {again} of trainer.restarts={config.trainer.restarts}, from {last or 'the start'}")
                one_run(job.config, last)
        dist.destroy_process_group()
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE if isinstance(error, RankLost) else float(rank > 0))  # rank 0 tells what all would tell
        raise


def last_checkpoint(config: DictConfig, began: float) -> Path | None:
    """That which a run has left since then."""
    folder = OmegaConf.select(config, "callbacks.last.dirpath")
    file = Path(folder or "", "last.ckpt")
    return file if folder and file.exists() and file.stat().st_mtime >= began else None


def _end_with_agent() -> None:
    """However the agent went."""
    agent = multiprocessing.parent_process()
    assert agent is not None
    agent.join()
    os._exit(1)


def join(store: Any, rank: int, world: int, seconds: float) -> None:
    """Become a member of the process group. Collectives of objects go over gloo, those of GPU tensors over NCCL."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds))


def on_ranks_there(one_run: Callable[..., Any], job: Job | None = None) -> None:
    """On the ranks that torchrun or srun has started: rank 0 hands its ``job`` to the others, and all run it."""
    import torch.distributed as dist

    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    if job is not None:
        store.set("job", pickle.dumps(job))
    else:
        job = Job(*pickle.loads(store.get("job")))
        job.enter()
    join(dist.PrefixStore("ranks", store), rank, world, job.config.trainer.timeout)
    one_run(job.config)
    dist.destroy_process_group()


def lost(error: BaseException, config: DictConfig) -> RunFailed | None:
    """What to say of an exchange that gloo or NCCL could not end, rather than of a mistake of the recipe's."""
    text = str(error).lower()
    if world_size(config) == 1 or not isinstance(error, RuntimeError):
        return None
    if "timed out" in text or "timeout" in text:
        return RunFailed(f"trainer.timeout={config.trainer.timeout}: so many seconds it waited for another rank")
    broken = type(error).__name__.startswith("Dist") or "gloo" in text or "nccl" in text or "peer" in text
    return RankLost("an exchange was broken off: another rank has ended") if broken else None
