"""train.py on two ranks: one sweep directory with each arm once, one run directory, torchrun."""

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conf_tests.conformance.catalogue import declared
from conf_tests.helpers import ROOT, result, start, train

TWO = ["recipe=dirac_gan", "trainer=ddp", "trainer.max_steps=6", "trainer.val_check_interval=6", "logger=none"]
TWO += ["trainer.log_every_n_steps=3"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three arms on two ranks, of which the second raises: their folder, and what was printed."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, train("-m", *TWO, "stop.fakes=detach,inference_mode,none", cwd=folder)


def test_sweep_makes_one_directory_with_each_arm_once(swept):
    folder, ran = swept
    assert ran.returncode == 0, ran.stderr
    (sweep,) = (folder / "runs" / "dirac_gan").iterdir()
    runs = sorted(str(file.parent.relative_to(sweep)) for file in sweep.rglob("result.json"))
    assert runs == [f"fakes-{arm}/seed-0" for arm in ("detach", "inference_mode", "none")]
    detach, inference_mode, none = (result(sweep / run) for run in runs)
    assert [each["status"] for each in (detach, inference_mode, none)] == ["finished", "raised", "finished"]
    assert detach["weights_sha256"] == none["weights_sha256"] == none["ranks"][1]["weights_sha256"]
    told = re.findall(r"^run \d of 3  (\S+)", ran.stdout, re.M)
    assert told == runs  # each once
    assert {path.name for path in folder.iterdir()} == {"runs"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("trainer.devices=2", "trainer.devices=2: several processes need trainer=ddp"),
        ("trainer=ddp trainer.devices=0", "trainer.devices=0: choose a number from 1"),
        ("trainer=ddp trainer.devices=auto", "trainer.devices=auto: choose a number from 1"),
        ("trainer=fsdp trainer.shard=3", "trainer.shard=3: choose a number that divides the 2 ranks"),
        ("trainer=ddp trainer.num_nodes=2", "trainer.num_nodes=2: several machines need torchrun; .*"),
        ("trainer=ddp trainer.restarts=-1", "trainer.restarts=-1: input should be greater than or equal to 0"),
        ("trainer=ddp trainer.timeout=0", "trainer.timeout=0: input should be greater than 0"),
        ("trainer=cpu +trainer.restarts=1", "trainer.restarts=1: choose one of .*"),
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


def test_checkpoint_goes_on_on_another_number_of_ranks(swept, tmp_path):
    (two,) = (swept[0] / "runs" / "dirac_gan").glob("*/fakes-detach/seed-0")
    last = two / "checkpoints" / "last.ckpt"
    more = ["recipe=dirac_gan", "trainer=smoke", "trainer.max_steps=9", "logger=none"]
    ran = train(*more, f"ckpt_path={last}", "hydra.run.dir=one", cwd=tmp_path)
    assert "ckpt_path: written by 2 rank(s), here are 1: the data in their order, noise of its own" in ran.stderr
    gone_on = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    assert gone_on["global_step"] == 9
    (loader,) = gone_on["ranks"][0]["loaders"]
    assert loader == {"position": 9}  # batch k of the whole run, whichever rank takes what of it
    ran = train("recipe=dirac_gan", "mode=evaluate", f"ckpt_path={last}", "hydra.run.dir=e", cwd=tmp_path)
    assert result(tmp_path / "e")["weights_sha256"] == result(two)["weights_sha256"]


def test_fsdp_runs_as_ddp_does_and_each_goes_on_from_the_other(tmp_path):
    """Sharded in one, whole in the other: the same bits, also where they go on from each other's checkpoint."""
    more = ["recipe=gan", "recipe.width=16", "data.batch_size=12", "logger=none", "trainer.val_check_interval=6"]
    first = ["trainer.max_steps=6", "callbacks.last.every_n_train_steps=3", "hydra.sweep.dir=s"]
    train("-m", *more, *first, "trainer=ddp,fsdp", "hydra.sweep.subdir=${hydra:runtime.choices.trainer}", cwd=tmp_path)
    hashes = {kind: result(tmp_path / "s" / kind)["weights_sha256"] for kind in ("ddp", "fsdp")}
    assert hashes["ddp"] == hashes["fsdp"]
    last = tmp_path / "s" / "fsdp" / "checkpoints" / "last.ckpt"
    on = ["trainer.max_steps=9", "trainer.val_check_interval=9", "hydra.sweep.dir=on"]
    both = f"ckpt_path={last},null"
    train("-m", *more[:-1], *on, "trainer=ddp", both, "hydra.sweep.subdir=${hydra:job.num}", cwd=tmp_path)
    assert result(tmp_path / "on" / "0")["weights_sha256"] == result(tmp_path / "on" / "1")["weights_sha256"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_group_that_has_ended_leaves_no_thread(tmp_path):
    """One that still held a tensor as Python ended aborted the rank, once in five runs under torchrun."""
    program = """if True:
        import sys
        from pathlib import Path
        import torch.distributed as dist
        from stopgrad.runner.launch import join

        def threads():
            return [name for file in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := file.read_text())]

        join(0, 1, 30, init_method=f"file://{sys.argv[1]}/meet")
        import torch.distributed.nn
        dist.all_gather_object([None], "said")
        assert threads()
        dist.destroy_process_group()
        assert not threads()
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


def test_torchrun(tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "train.py"),
    ]
    ran = subprocess.run([*launch, *TWO, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr.decode()
    first, second = result(tmp_path / "run")["ranks"]
    assert first["weights_sha256"] == second["weights_sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_sweep_under_torchrun_is_refused_in_one_line(tmp_path):
    """By rank 0; torchrun then ends the others."""
    of_rank_0 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ran = train("-m", *TWO, "seed=0,1", cwd=tmp_path, TORCHELASTIC_RUN_ID="test", **of_rank_0)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: -m under torchrun: start a sweep without it")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["gan", "bandit"])
def test_resumed_each_rank_goes_on_with_its_own_streams_and_environments(recipe, tmp_path):
    run = [*TWO[1:], f"recipe={recipe}", *declared(recipe).small]
    both = [
        "trainer.max_steps=4,8",
        "hydra.sweep.dir=s",
        "hydra.sweep.subdir=${trainer.max_steps}",
    ]  # on the same ranks
    train("-m", *run, *both, cwd=tmp_path)
    last = tmp_path / "s" / "4" / "checkpoints" / "last.ckpt"
    train(*run, "trainer.max_steps=8", f"ckpt_path={last}", "hydra.run.dir=resumed", cwd=tmp_path)
    resumed, whole = result(tmp_path / "resumed"), result(tmp_path / "s" / "8")
    assert (resumed["steps"], resumed["weights_sha256"]) == (8, whole["weights_sha256"])


def test_under_srun_the_ranks_are_there(tmp_path):
    """Two processes with the variables that Slurm sets; rank 1 has no config of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "job", "MASTER_PORT": port}
    ranks = []
    for rank, overrides in enumerate([[*TWO, "hydra.run.dir=run"], []]):
        mine = slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        ranks.append(start(*overrides, cwd=tmp_path, out=tmp_path / f"out{rank}", err=tmp_path / f"err{rank}", **mine))
    for rank, process in enumerate(ranks):
        process.join(120)
        process.kill()
        assert process.exitcode == 0, (tmp_path / f"err{rank}").read_text()
    first, second = result(tmp_path / "run")["ranks"]
    assert first["weights_sha256"] == second["weights_sha256"]
    assert (tmp_path / "out1").read_text() == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=td", "trainer=smoke"], "trainer.strategy: under srun every run needs trainer=ddp"),
        (
            [*TWO, "trainer.devices=3"],
            "trainer.devices=3 trainer.num_nodes=1: srun started 2 ranks on each of 1 machines; "
            "write trainer.devices=2 trainer.num_nodes=1",
        ),
        (["-m", *TWO, "seed=0,1"], "-m under srun: start a sweep without it; trainer=ddp starts its ranks itself"),
    ],
)
def test_under_srun_wrong_numbers_are_refused_in_one_line(overrides, message, tmp_path):
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
    ran = train(*overrides, cwd=tmp_path, SLURM_PROCID="0", SLURM_LOCALID="0", **slurm)
    assert (ran.returncode, ran.stderr) == (2, f"error: {message}\n")


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None, reason="pip install -e '.[slurm]'"
)
def test_each_arm_in_a_job_of_submitit_on_this_machine(swept, tmp_path):
    """Each of which starts its own two ranks."""
    arms = ["stop.fakes=detach,none", "hydra/launcher=submitit", "hydra.sweep.dir=s"]
    ran = train("-m", *TWO, *arms, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (sweep,) = (swept[0] / "runs" / "dirac_gan").iterdir()
    for arm in ("fakes-detach", "fakes-none"):
        found, same = result(tmp_path / "s" / arm / "seed-0"), result(sweep / arm / "seed-0")
        assert found["ranks"] == same["ranks"]
    assert len(list((tmp_path / "s" / ".submitit").glob("*/*_result.pkl"))) == 2
