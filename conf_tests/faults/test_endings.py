"""However a run ends, it leaves a checkpoint that loads, from which it goes on exactly, and a result that says so."""

from __future__ import annotations

import errno
import os
import re
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
from conf_tests.faults.processes import descendants, left_of, listening, listening_on, ranks_of
from conf_tests.helpers import PROCESSES, result, train, wait_for
from stopgrad.lightning import loss_name
from stopgrad.runner.checkpoints import LastCheckpoint, WholeCheckpoints
from stopgrad.runner.errors import RunFailed
from stopgrad.runner.finite import Finite, NonFiniteLoss

RUN = ["recipe=dirac_gan", "logger=none", "trainer.val_check_interval=10"]
TWO = ["trainer=ddp", "trainer.devices=2"]
FAULT = ["+callbacks.fault._target_=conf_tests.faults.fault.Fault", "allow=[conf_tests]"]
FAULT += ["+callbacks.fault.folder=${hydra:runtime.output_dir}"]


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


@pytest.mark.parametrize(
    ("number", "status", "ranks"),
    [(signal.SIGTERM, 143, []), (signal.SIGINT, 130, []), (signal.SIGTERM, 143, TWO), (signal.SIGINT, 130, TWO)],
    ids=["SIGTERM", "Ctrl-C", "SIGTERM, two ranks", "Ctrl-C, two ranks"],
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


# ---- several ranks


def test_two_runs_at_once_have_their_own_ranks_which_listen_on_loopback_alone_and_end_with_who_started_them(tmp_path):
    """The one's rank is killed, the other's parent."""
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = []
    try:
        for folder in folders:
            (folder / "tmp").mkdir(parents=True)
            run = [*RUN, *TWO, "trainer.max_steps=100000000", "hydra.run.dir=run"]
            ends = {"out": folder / "out", "err": folder / "err", "TMPDIR": str(folder / "tmp")}
            processes.append(helpers.start(*run, cwd=folder, **ends))
        for process, folder in zip(processes, folders, strict=True):
            checkpoint_of(process, folder)
        everyone = [descendants(process.pid) for process in processes]
        ranks = [ranks_of(process.pid) for process in processes]
        assert [len(each) for each in ranks] == [2, 2]
        ports = [address for each in ranks for rank in each for address in listening_on(rank)]
        assert len(set(ports)) == len(ports) >= 4  # gloo does, on each rank
        assert {address for address in ports if not address.startswith("0100007F:")} == set()
        assert not any(listening_on(process.pid) for process in processes)

        os.kill(ranks[0][1], signal.SIGKILL)
        asked = time.monotonic()
        processes[0].join(60)
        assert time.monotonic() - asked < 15
        assert processes[0].exitcode == 1
        assert (folders[0] / "err").read_text() == "error: rank 1 was ended by SIGKILL\n"
        ended = result(folders[0] / "run")
        assert (ended["status"], ended["message"]) == ("raised", "rank 1 was ended by SIGKILL")
        assert left_of(everyone[0]) == []
        assert list((folders[0] / "tmp").iterdir()) == []

        last = folders[1] / "run" / "checkpoints" / "last.ckpt"
        assert processes[1].is_alive()
        written = last.stat().st_mtime_ns
        assert wait_for(lambda: last.stat().st_mtime_ns > written, processes[1])  # the other goes on
        processes[1].kill()
        processes[1].join()
        assert left_of(everyone[1]) == []
        assert not set(ports) & {address for address, _ in listening()}
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """A sweep over what happens to a rank in step 40, with and without restarts: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("faults")
    kinds = ["trainer.restarts=0,3", "+callbacks.fault.kind=none,kill,raise,disk", *FAULT]
    steps = [
        "trainer.max_steps=60",
        "hydra.sweep.dir=s",
        "hydra.sweep.subdir=${callbacks.fault.kind}-${trainer.restarts}",
    ]
    return folder / "s", train("-m", *RUN, "trainer=ddp", *kinds, *steps, cwd=folder)


def test_rank_that_fails_is_named_in_one_line_with_its_own_error(faults):
    folder, ran = faults
    assert ran.returncode == 0, ran.stderr
    wrote = f"checkpoint {folder}/disk-0/checkpoints/last.ckpt: cannot be written: No space left on device"
    said = {
        "kill": ("RankKilled", "rank 1 was ended by SIGKILL"),
        "raise": ("ValueError", "rank 1: ValueError: on purpose,"),
        "disk": ("RunFailed", f"{wrote}; the one before is kept"),
    }
    for kind, (error, message) in said.items():
        found = result(folder / f"{kind}-0")
        assert (found["status"], found["error"], found["message"]) == ("raised", error, message)
        assert found["steps"] == (50 if kind == "disk" else 40)
    lines = ran.stderr.splitlines()
    assert lines[:3] == [f"error: {message}" for _, message in said.values()]
    assert len(re.findall(r"^run \d of 8  ", ran.stdout, re.M)) == 8  # each is told once


def test_started_again_it_ends_as_if_nothing_had_happened(faults):
    folder, ran = faults
    whole = result(folder / "none-0")
    assert whole["status"] == "finished"
    for kind in ("none", "kill", "raise", "disk"):
        found = result(folder / f"{kind}-3")
        assert (found["status"], found["steps"]) == ("finished", 60)
        assert found["weights_sha256"] == whole["weights_sha256"], kind
    again = [line for line in ran.stderr.splitlines() if "restart" in line]
    assert len(again) == len(ran.stderr.splitlines()) - 3 == 3
    assert all(line.endswith("/checkpoints/last.ckpt") for line in again)


@pytest.mark.full
def test_rank_that_hangs_ends_the_run(tmp_path):
    ran = train(
        *RUN,
        *TWO,
        *FAULT,
        "+callbacks.fault.kind=hang",
        "trainer.timeout=10",
        "trainer.max_steps=60",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert ran.returncode == 1
    assert ran.stderr == "error: trainer.timeout=10: for so many seconds another rank did not answer\n"
    assert result(tmp_path / "run")["steps"] == 40


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
