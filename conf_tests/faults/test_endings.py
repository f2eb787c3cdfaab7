"""However a run ends, it leaves a checkpoint that loads, from which it goes on exactly, and a result that says so."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from conf_tests import helpers
from conf_tests.helpers import PROCESSES, result, train, wait_for
from stopgrad.lightning import loss_name
from stopgrad.runner.checkpoints import LastCheckpoint, WholeCheckpoints
from stopgrad.runner.errors import RunFailed
from stopgrad.runner.finite import Finite, NonFiniteLoss

RUN = ["recipe=dirac_gan", "logger=none", "trainer.val_check_interval=10"]
TWO = ["trainer=ddp", "trainer.devices=2"]


@pytest.fixture
def start(tmp_path):
    """Start a run that does not end by itself, in ``tmp_path``/run; it is killed when the test ends."""
    processes = []

    def started(*more: str) -> Any:
        overrides = [*RUN, "trainer.max_steps=100000000", "hydra.run.dir=run", *more]
        processes.append(helpers.start(*overrides, cwd=tmp_path, out=tmp_path / "out", err=tmp_path / "err"))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.join(30)
        process.close()


def checkpoint_of(process: Any, folder: Path) -> Path:
    """The first checkpoint, once it is there."""
    last = folder / "run" / "checkpoints" / "last.ckpt"
    assert wait_for(last.exists, process), (folder / "err").read_text()
    return last


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("number", "status", "ranks"),
    [(signal.SIGTERM, 143, []), (signal.SIGINT, 130, []), (signal.SIGTERM, 143, TWO)],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM, two ranks"],
)
def test_asked_to_end_it_saves_and_goes_on_from_there(number, status, ranks, start, tmp_path):
    process = start(*ranks)
    last = checkpoint_of(process, tmp_path)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status
    assert result(tmp_path / "run")["status"] == "interrupted"
    steps = torch.load(last, weights_only=True)["global_step"]
    assert result(tmp_path / "run")["steps"] == steps
    both = [f"ckpt_path={last},null", "hydra.sweep.dir=s", "hydra.sweep.subdir=${hydra:job.num}"]
    train("-m", *RUN, *ranks, f"trainer.max_steps={steps + 7}", *both, cwd=tmp_path)
    resumed, whole = result(tmp_path / "s" / "0"), result(tmp_path / "s" / "1")
    assert resumed["steps"] == whole["steps"] == steps + 7
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_killed_rank_ends_the_run_with_a_line_and_leaves_no_process(start, tmp_path):
    process = start(*TWO)
    checkpoint_of(process, tmp_path)
    (other,) = children(process.pid)
    os.kill(other, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == 1
    assert (tmp_path / "err").read_text().splitlines()[-1] == "error: rank 1 ended with status -9"
    assert result(tmp_path / "run")["status"] == "raised"


def test_ranks_listen_on_loopback_alone_and_end_with_rank_0(start, tmp_path):
    process = start(*TWO)
    checkpoint_of(process, tmp_path)
    (other,) = children(process.pid)
    listening = [address for pid in (process.pid, other) for address in listening_on(pid)]
    assert listening  # gloo does
    assert {address for address in listening if not address.startswith("0100007F:")} == set()
    process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()


def listening_on(pid: int) -> list[str]:
    """Local addresses of the listening TCP sockets of a process, in the kernel's hexadecimal."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(link))
        except OSError:
            continue
    lines = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()
    ]
    return [fields[1] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets]


# ---- checkpoints


def write_forever(file: Path) -> None:
    number = 0
    while True:
        number += 1
        WholeCheckpoints().save_checkpoint({"number": number, "weights": torch.full((200_000,), number)}, file)


def test_killed_while_it_writes_the_checkpoint_is_whole(tmp_path):
    file, seen = tmp_path / "last.ckpt", set()
    for kill in range(12):
        process = PROCESSES.Process(target=write_forever, args=(file,), daemon=True)
        process.start()
        before = file.stat().st_mtime_ns if file.exists() else 0
        deadline = time.monotonic() + 20
        while (not file.exists() or file.stat().st_mtime_ns == before) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(kill * 0.0007)
        process.kill()
        process.join()
        saved = WholeCheckpoints().load_checkpoint(file)
        assert saved["weights"].eq(saved["number"]).all()
        seen.add((tmp_path / ".last.ckpt.tmp").exists())
    assert True in seen  # at least one kill came in the middle of a write


def out_of_space(file, descriptor=None):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"number": 1}, file)
    monkeypatch.setattr(os, "fsync", out_of_space)
    with pytest.raises(
        RunFailed, match=rf"checkpoint {file}: cannot be written: No space left .*; the one before is kept"
    ):
        WholeCheckpoints().save_checkpoint({"number": 2}, file)
    assert WholeCheckpoints().load_checkpoint(file) == {"number": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def small_disk(folder, answers):
    """A file may have 20 KB, as the kernel enforces it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = folder / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"number": 1}, file)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        WholeCheckpoints().save_checkpoint({"weights": torch.zeros(100_000)}, file)
    except RunFailed as error:
        answers.put(str(error))


def test_write_that_the_system_cuts_off_keeps_the_checkpoint_before(tmp_path):
    answers = PROCESSES.Queue()
    process = PROCESSES.Process(target=small_disk, args=(tmp_path, answers), daemon=True)
    process.start()
    said = answers.get(timeout=60)
    process.join(20)
    assert said.endswith("; the one before is kept")
    assert WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt") == {"number": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_last_checkpoint_is_written_every_so_many_batches_and_after_the_last(tmp_path):
    written = []
    trainer = SimpleNamespace(world_size=1, max_steps=8, save_checkpoint=written.append)
    last = LastCheckpoint(str(tmp_path), every_n_train_steps=3)
    for trainer.global_step in (1, 2, 3, 3, 4, 5, 6, 7, 8):  # two batches of one step
        last.on_train_batch_end(trainer)
    assert written == [tmp_path / "last.ckpt"] * 3  # after 3, 6 and 8


# ---- losses that are not finite


class Diverging(L.LightningModule):
    """``b_loss`` is infinite at step 5."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.w = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        for name in ("a_loss", "b_loss"):
            loss = self.w.sum() * (torch.inf if (name, batch_idx) == ("b_loss", 5) else 1)
            with loss_name(name):
                self.manual_backward(loss)
        self.optimizers().step()

    def train_dataloader(self):
        return [0] * 20

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore")  # of Lightning, about a loader without workers
@pytest.mark.parametrize(("at_once", "steps"), [(True, 5), (None, 5), (False, 8)])
def test_loss_that_is_not_finite_is_named_with_its_step(at_once, steps):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[Finite(at_once)],
        log_every_n_steps=4,
        enable_model_summary=False,
        max_epochs=1,
        **quiet,
    )
    with pytest.raises(NonFiniteLoss, match=r"^b_loss is inf at step 5$"):
        trainer.fit(Diverging())
    assert trainer.global_step == steps  # where nothing waits for the device, it ends at the next logging


def test_run_says_so_in_a_line_and_in_its_result(tmp_path):
    run = ["recipe=dirac_gan", "trainer=smoke", "recipe.d_optimizer.lr=1e30", "logger=none"]
    ran = train(*run, "hydra.run.dir=run", cwd=tmp_path)
    recorded = result(tmp_path / "run")
    assert ran.returncode == 1
    assert (recorded["status"], recorded["error"]) == ("raised", "NonFiniteLoss")
    assert ran.stderr.splitlines() == [f"error: {recorded['message']}"]
    assert recorded["message"].startswith(("d_loss is ", "g_loss is "))
    ran = train(*run, "callbacks.finite=null", "hydra.run.dir=on", cwd=tmp_path)
    assert result(tmp_path / "on")["status"] == "finished"
