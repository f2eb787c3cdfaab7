"""train.py on two ranks: one sweep directory with each arm once, one run directory, torchrun."""

import re
import subprocess
import sys

import pytest

from conf_tests.conformance.catalogue import declared
from conf_tests.helpers import ROOT, result, train

TWO = ["recipe=dirac_gan", "trainer=ddp", "trainer.max_steps=6", "trainer.val_check_interval=6", "logger=none"]
TWO += ["trainer.log_every_n_steps=3"]


def test_sweep_makes_one_directory_with_each_arm_once(tmp_path):
    ran = train("-m", *TWO, "stop.fakes=detach,inference_mode,none", "seed=0,1", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (sweep,) = (tmp_path / "runs" / "dirac_gan").iterdir()
    runs = sorted(str(file.parent.relative_to(sweep)) for file in sweep.rglob("result.json"))
    assert runs == [f"fakes-{arm}/seed-{seed}" for arm in ("detach", "inference_mode", "none") for seed in (0, 1)]
    status = {run: result(sweep / run)["status"] for run in runs}
    assert {run: s for run, s in status.items() if s != "finished"} == {
        "fakes-inference_mode/seed-0": "raised",
        "fakes-inference_mode/seed-1": "raised",
    }
    detach, none = (result(sweep / f"fakes-{arm}" / "seed-0") for arm in ("detach", "none"))
    assert detach["weights_sha256"] == none["weights_sha256"] == none["ranks"][1]["weights_sha256"]
    told = re.findall(r"^run \d of 6  (\S+)", ran.stdout, re.M)
    assert told == runs  # each once
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("trainer.devices=2", "trainer.devices=2: several processes need trainer=ddp"),
        ("trainer=ddp trainer.devices=0", "trainer.devices=0: choose a number from 1"),
        ("trainer=ddp trainer.devices=auto", "trainer.devices=auto: choose a number from 1"),
        ("trainer=ddp trainer.num_nodes=2", "trainer.num_nodes=2: several machines need torchrun; .*"),
        ("trainer=ddp data.batch_size=33", "data.batch_size=33: is shared by 2 ranks; choose a multiple of 2"),
        ("trainer=ddp data.batch_size=4", "data.batch_size=2: fewer than recipe.n_critic=3 steps, on each rank"),
        ("data.batch_size=2", "data.batch_size=2: fewer than recipe.n_critic=3 steps, on each rank"),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(overrides, message, tmp_path):
    ran = train(*overrides.split(" "), cwd=tmp_path)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: " + message.removesuffix(".*"))
    assert not (tmp_path / "runs").exists()


def test_checkpoint_of_two_ranks_is_refused_by_one(tmp_path):
    train(*TWO, "hydra.run.dir=two", cwd=tmp_path)
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    ran = train("recipe=dirac_gan", "trainer=smoke", f"ckpt_path={last}", cwd=tmp_path)
    assert ran.stderr == f"error: ckpt_path={last}: written by 2 rank(s), which it goes on with; here are 1\n"
    ran = train("recipe=dirac_gan", "mode=evaluate", f"ckpt_path={last}", "hydra.run.dir=e", cwd=tmp_path)
    assert result(tmp_path / "e")["weights_sha256"] == result(tmp_path / "two")["weights_sha256"]


def test_torchrun(tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "train.py"),
    ]
    whole = [*TWO, f"cache={ROOT / '.cache'}"]
    ran = subprocess.run([*launch, *whole, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    first, second = result(tmp_path / "run")["ranks"]
    assert first["weights_sha256"] == second["weights_sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    ran = subprocess.run([*launch, "-m", *whole, "seed=0,1"], cwd=tmp_path, capture_output=True, timeout=120)
    assert b"error: -m under torchrun: start a sweep without it" in ran.stderr


@pytest.mark.parametrize("recipe", ["gan", "bandit"])
def test_resumed_each_rank_goes_on_with_its_own_streams_and_environments(recipe, tmp_path):
    run = [*TWO[1:], f"recipe={recipe}", *declared(recipe).small]
    train(*run, "trainer.max_steps=4", "hydra.run.dir=half", cwd=tmp_path)
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    train(*run, "trainer.max_steps=8", f"ckpt_path={last}", "hydra.run.dir=resumed", cwd=tmp_path)
    train(*run, "trainer.max_steps=8", "hydra.run.dir=whole", cwd=tmp_path)
    resumed, whole = result(tmp_path / "resumed"), result(tmp_path / "whole")
    assert (resumed["steps"], resumed["weights_sha256"]) == (8, whole["weights_sha256"])
