"""The processes of one run: rank 0 composes and checks the config, and hands it to the others.

``python train.py trainer=ddp trainer.devices=2`` is rank 0. It starts the other ranks of its machine itself, once, and
gives them one pinned config after the other, an arm of a sweep each; nothing that they do depends on a command line.
Under torchrun, on one machine or several, the ranks are there already: rank 0 composes, the others take its config.

On one machine no port is opened to the network: the ranks meet in a file and speak over the loopback interface.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stopgrad.runner.errors import InputError, RunFailed, wants_traceback
from stopgrad.runner.project import project

FOLDER = "STOPGRAD_RANKS"  # where the ranks of this machine meet; set for those that rank 0 started
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", "NCCL_SOCKET_IFNAME": "lo"}
PATIENCE = 15.0  # seconds in which a rank that failed has written why
TIMEOUT = timedelta(minutes=10)  # for one exchange between the ranks


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def follows() -> bool:
    """Whether this process takes its config from rank 0."""
    return (FOLDER in os.environ or under_torchrun()) and int(os.environ.get("RANK", 0)) > 0


def averages(config: DictConfig) -> bool:
    """Whether the trainer is one of several processes."""
    strategy = config.trainer.get("strategy")
    return isinstance(strategy, DictConfig)


def world_size(config: DictConfig) -> int:
    """How many processes the config asks for."""
    return int(config.trainer.devices) * int(config.trainer.get("num_nodes", 1)) if averages(config) else 1


def check_ranks(config: DictConfig) -> None:
    """Refuse numbers of devices that this launch cannot give.

    Raises:
        InputError: with the key and what is allowed.
    """
    devices, nodes = config.trainer.devices, config.trainer.get("num_nodes", 1)
    for key, value in (("devices", devices), ("num_nodes", nodes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"trainer.{key}={value}: choose a number from 1")
    if not averages(config):
        if devices * nodes > 1:
            raise InputError(f"trainer.devices={devices}: several processes need trainer=ddp")
        if under_torchrun():
            raise InputError("trainer.strategy: under torchrun every run needs trainer=ddp")
        return
    if not under_torchrun():
        if nodes > 1:
            raise InputError(f"trainer.num_nodes={nodes}: several machines need torchrun; see docs/distributed.md")
        return
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if (devices, nodes) != (local, world // local):
        raise InputError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}: torchrun started {local} ranks on each of "
            f"{world // local} machines; write trainer.devices={local} trainer.num_nodes={world // local}"
        )


def run_on_ranks(config: DictConfig, one_run: Callable[[DictConfig], str]) -> None:
    """``one_run(config)`` here, and on all other ranks that the config asks for. It returns how the run ended.

    After a run that did not finish, the ranks of this machine are started anew for the next.
    """
    if world_size(config) == 1:
        one_run(config)
        return
    ranks = _Ranks.of(config)
    ended = "raised"
    try:
        ranks.send(config)
        ended = one_run(config)
    finally:
        if ended != "finished":
            ranks.stop()


def follow(one_run: Callable[[DictConfig], str]) -> None:
    """The life of a rank other than 0: take a config, run it, take the next; end with rank 0."""
    if FOLDER in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: rank 0 answers it
        threading.Thread(target=_end_with_rank_0, daemon=True).start()
    import torch.distributed as dist
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()  # the resolvers of Hydra's own config
    _join()
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            break
        config, hydra = box[0]
        HydraConfig.instance().set_config(hydra)
        try:
            ended = one_run(config)
        except Exception as error:
            if FOLDER in os.environ:
                _tell(error)
            raise
        if ended != "finished":
            break
    _leave()
    os._exit(0)  # gloo's threads do not always survive an orderly end


def _end_with_rank_0() -> None:
    """Standard input is a pipe that rank 0 holds: when it closes, rank 0 is gone, however it went."""
    sys.stdin.buffer.read()
    os._exit(1)


def _tell(error: BaseException) -> None:
    file = Path(os.environ[FOLDER], f"error-{os.environ['RANK']}.json")
    half_written = file.with_suffix(".tmp")
    half_written.write_text(json.dumps([type(error).__name__, str(error)]))
    half_written.replace(file)


def _join() -> None:
    """Become a member of the process group. Collectives of objects go over gloo, those of GPU tensors over NCCL."""
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if under_torchrun():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, timeout=TIMEOUT)
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = Path(os.environ[FOLDER], "store").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, timeout=TIMEOUT)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


class _Ranks:
    """The group as rank 0 sees it, and on this machine the processes that it has started."""

    running: _Ranks | None = None

    def __init__(self, world: int) -> None:
        self.world = world
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder: Path | None = None
        self.outside = {name: os.environ.get(name) for name in (*_environment(0, 1, Path()), *LOOPBACK)}
        if not under_torchrun():
            self.folder = Path(tempfile.mkdtemp(prefix="stopgrad-ranks-"))
            for name, value in LOOPBACK.items():
                os.environ.setdefault(name, value)
            for rank in range(1, world):
                self.processes.append(self._start(rank))
            os.environ.update(_environment(0, world, self.folder))
        _join()
        atexit.register(self.stop, wait=PATIENCE)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        assert self.folder is not None
        with open(self.folder / f"stderr-{rank}", "wb") as stderr:
            return subprocess.Popen(
                [sys.executable, str(project() / "train.py")],
                env=os.environ | _environment(rank, self.world, self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @classmethod
    def of(cls, config: DictConfig) -> _Ranks:
        """Those that run already, where they are as many as the config asks for."""
        world, now = world_size(config), cls.running
        if now is not None and (now.world != world or any(p.poll() is not None for p in now.processes)):
            now.stop()
        if cls.running is None:
            cls.running = cls(world)
        return cls.running

    def send(self, config: DictConfig) -> None:
        import torch.distributed as dist
        from hydra.core.hydra_config import HydraConfig

        hydra = OmegaConf.create({"hydra": HydraConfig.get()})
        OmegaConf.set_readonly(hydra, True)
        dist.broadcast_object_list([(config, hydra)], src=0)

    def stop(self, wait: float = 0.0) -> None:
        """End the other ranks: at once, or let them end what they do for ``wait`` seconds."""
        if _Ranks.running is not self:
            return
        _Ranks.running = None
        atexit.unregister(self.stop)
        if wait and (under_torchrun() or all(p.poll() is None for p in self.processes)):
            self._say_goodbye()
        _leave()
        deadline = time.monotonic() + wait
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for name, value in self.outside.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

    def _say_goodbye(self) -> None:
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.broadcast_object_list([None], src=0)

    def failure(self) -> str | None:
        """Why another rank of this machine ended, in one line; None where all go on."""
        for rank, process in enumerate(self.processes, start=1):
            assert self.folder is not None
            told = self.folder / f"error-{rank}.json"
            if told.exists():
                if wants_traceback():
                    sys.stderr.write((self.folder / f"stderr-{rank}").read_text(errors="replace"))
                name, message = json.loads(told.read_text())
                return f"rank {rank}: {name}: {message}"
            if process.poll() is not None:
                last = (self.folder / f"stderr-{rank}").read_text(errors="replace").strip().splitlines()[-1:]
                return f"rank {rank} ended with status {process.returncode}{''.join(': ' + line for line in last)}"
        return None


def _environment(rank: int, world: int, folder: Path) -> dict[str, str]:
    """What torchrun would set, on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # unused: the ranks meet in a file
        FOLDER: str(folder),
    }


class RankFailed(RunFailed):
    """Another rank ended in the middle of a run; the message is what it had to say."""


@contextmanager
def failures_of_others() -> Iterator[None]:
    """Where an exchange fails because another rank has ended, raise what that rank has to say."""
    try:
        yield
    except RuntimeError as error:
        ranks = _Ranks.running
        if ranks is None or not _is_broken_exchange(error):
            raise
        deadline = time.monotonic() + PATIENCE
        while (failure := ranks.failure()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        raise RankFailed(failure or str(error)) from error


def _is_broken_exchange(error: RuntimeError) -> bool:
    """Whether gloo or NCCL lost a peer, rather than the recipe made a mistake."""
    text = str(error).lower()
    return type(error).__name__.startswith("Dist") or "gloo" in text or "peer" in text or "nccl" in text
