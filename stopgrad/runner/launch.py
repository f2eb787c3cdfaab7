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
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from stopgrad.runner import names
from stopgrad.runner.endings import RankLost, since, told
from stopgrad.runner.errors import wants_traceback
from stopgrad.runner.progress import Sweep
from stopgrad.runner.safety import guard
from stopgrad.runner.sweep import take_part

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "NCCL_SOCKET_IFNAME": "lo"}
PRELOAD = ["lightning.pytorch", "torch.utils.tensorboard", "stopgrad.runner.build", "stopgrad.runner.record"]
OURS = "stopgrad-launch-"  # so begin the names of launches from here
PATIENCE = 8  # seconds that a rank which lost another waits to be ended, so that the other's reason is the one told
SHUTDOWN = "12"  # seconds in which ranks that are asked to end have saved; from torch 2.13 on, 30 before


class Job(NamedTuple):
    """One run: its pinned config, and Hydra's, which says where it goes."""

    config: DictConfig
    hydra: DictConfig

    @classmethod
    def of(cls, config: DictConfig) -> Job:
        return cls(config, OmegaConf.create({"hydra": HydraConfig.get()}))

    @property
    def folder(self) -> Path:
        return Path(self.hydra.hydra.runtime.output_dir)

    def enter(self) -> None:
        setup_globals()  # the resolvers of Hydra's own config
        HydraConfig.instance().set_config(self.hydra)


def under_srun() -> bool:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def ranks_are_there() -> bool:
    """Whether torchrun or srun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or under_srun()


def started_here() -> bool:
    """Whether this process is a rank that :func:`launch` has started."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OURS)


def averages(config: DictConfig) -> bool:
    """Whether the trainer is one of several processes."""
    return isinstance(config.trainer.get("strategy"), DictConfig)


def world_size(config: DictConfig) -> int:
    """How many processes the config asks for."""
    return int(config.trainer.devices) * int(config.trainer.get("num_nodes", 1)) if averages(config) else 1


def launch(one_run: Callable[..., Any], jobs: list[Job]) -> None:
    """Run the jobs one after the other, on ranks of this machine that are started once for all jobs of a kind.

    In a sweep a job that fails is a result; the ranks are started anew for those after it.

    Raises:
        SystemExit: a single run failed, or the ranks were asked to end.
    """
    for _, kind in groupby(jobs, lambda job: [job.config.trainer[key] for key in ("devices", "restarts", "timeout")]):
        left = list(kind)
        while left:
            left = left[_launch(one_run, left) :]


def _launch(one_run: Callable[..., Any], jobs: list[Job]) -> int:
    """Start the ranks, which run the jobs until one fails. Returns how many are done with."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in () if wants_traceback() else ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a store that would listen on all interfaces
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN)
    multiprocessing.set_forkserver_preload(PRELOAD)
    trainer, began = jobs[0].config.trainer, time.time()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}  # the agent leaves its own
    with TemporaryDirectory(prefix=OURS) as folder:
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
            return told(jobs, began, 0, None, error.sigval)
        except ChildFailedError as error:
            return told(jobs, began, *error.get_first_failure(), asked=0)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, handlers[number])


def _rank(one_run: Callable[..., Any], jobs: list[Job], folder: str, began: float, *state: Any) -> None:
    """The life of a rank that the agent has started: job after job; started again, what is left of them."""
    import torch.distributed as dist

    from stopgrad.runner.checkpoints import last_since
    from stopgrad.runner.terminal import Tqdm, say

    os.setsid()  # Ctrl-C in the terminal reaches the agent alone, which hands it on
    threading.Thread(target=_end_with_agent, daemon=True).start()
    Tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a rank that is killed would leave
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # started again
    take_part(*state)
    guard()
    again, trainer = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), jobs[0].config.trainer
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ.update(LOOPBACK | os.environ)
    try:
        join(rank, world, trainer.timeout, init_method=f"file://{folder}/ranks-{again}")
        for job in jobs:
            job.enter()
            if again and since(job.folder, began).get("status") == "finished":
                continue
            last = last_since(job.config, began) if again else None
            if again and rank == 0:
                (job.folder / "result.json").unlink(missing_ok=True)
                say(f"restart {again} of trainer.restarts={trainer.restarts}, from {last or 'the start'}")
            again = 0  # those after it had not begun
            one_run(job.config, last)
        dist.destroy_process_group()
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE if isinstance(error, RankLost) else float(rank > 0))  # rank 0 tells what all would tell
        raise


def _end_with_agent() -> None:
    """However it went: a rank's own parent is the fork server, which its children keep alive."""
    agent = multiprocessing.parent_process()
    assert agent is not None
    agent.join()
    os._exit(1)


def join(rank: int, world: int, seconds: float, **meeting: Any) -> None:
    """Become a member of the process group. Collectives of objects go over gloo, those of GPU tensors over NCCL.

    ``meeting`` says where the ranks meet, as to ``init_process_group``: ``init_method`` or ``store``.
    """
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional  # imported later, it keeps the group: its threads abort as Python ends

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(seconds=seconds), **meeting)


def adopt_srun() -> None:
    """Put what Slurm says of this rank in torchrun's words."""
    if under_srun():
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        said = {"RANK": slurm.global_rank(), "LOCAL_RANK": slurm.local_rank(), "GROUP_RANK": slurm.node_rank()}
        said |= {"WORLD_SIZE": slurm.world_size(), "LOCAL_WORLD_SIZE": os.environ["SLURM_NTASKS_PER_NODE"]}
        said |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port}
        os.environ.update({name: str(value) for name, value in said.items()})


def follows() -> bool:
    """Whether this process takes its config from rank 0."""
    return ranks_are_there() and int(os.environ["RANK"]) > 0


def on_ranks_there(one_run: Callable[..., Any], job: Job | None = None) -> None:
    """On the ranks that torchrun or srun has started: rank 0 hands its ``job`` to the others, and all run it."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    if job is not None:
        store.set("job", pickle.dumps(job).hex())
    job = job or Job(*pickle.loads(bytes.fromhex(store.get("job").decode())))
    job.enter()
    join(rank, world, job.config.trainer.timeout, store=store)
    one_run(job.config)
    dist.destroy_process_group()
