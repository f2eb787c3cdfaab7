"""A sweep of real runs: paired arms, the comparison at its end, Ctrl-C, going on, side by side, replay."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conf_tests.controlled import PAUSED
from conf_tests.helpers import ROOT, compare, result, start, train, wait_for
from stopgrad.__main__ import main
from stopgrad.compare.fingerprint import FILE, Fingerprints
from stopgrad.runner.fingerprints import KeepFingerprints

SHORT = ["trainer.max_steps=12", "trainer.val_check_interval=12", "data.batch_size=24"]
ARMS = ("detach", "detach_", "no_grad", "inference_mode", "none", "none-late", "penalty-detached")


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """``compare=gan``, an arm of each kind, one seed, a few steps; its folder and its comparison."""
    folder = tmp_path_factory.mktemp("gan")
    return folder, compare("gan", f"arm={','.join(ARMS)}", "seed=0", *SHORT, cwd=folder)


class TestCompareGan:
    def test_verdicts(self, gan):
        found = {name: (arm["verdict"], arm["expected"]) for name, arm in gan[1]["arms"].items()}
        assert found.pop("detach") == ("reference", None)
        declared = [(verdict, verdict) for verdict in ("identical", "raised", "broken")]
        early = [("cannot_tell", "broken")]  # what breaks may take more than a few steps to
        assert set(declared[:2]) <= set(found.values()) <= {*declared, *early}

    def test_sentences(self, gan):
        arms = gan[1]["arms"]
        for name in ("none", "none-late"):
            assert re.match(r"d_loss reaches generator \(\d\d% of its gradient\); ", arms[name]["sentence"])
            assert arms[name]["contract"] == {"broken": "d_loss reaches generator and stop.fakes", "flipped": ["fakes"]}
        assert "; no step uses it; identical weights; " in arms["none"]["sentence"]
        assert "; weights differ from step 1; " in arms["none-late"]["sentence"]
        assert arms["none-late"]["first_difference"]["tensor"] == "generator.0.weight"
        assert "Use no_grad, which costs the same" in arms["inference_mode"]["sentence"]
        assert arms["detach_"]["sentence"].startswith("identical weights")
        assert "d_loss's gradient at discriminator begins" in arms["penalty-detached"]["sentence"]

    def test_streams_and_initial_weights_of_all_arms_are_equal(self, gan):
        """By the fingerprints themselves: at every step, the random states and the batch; at step 0, the weights."""
        files = [file for file in gan[0].glob(f"sweep/*/seed-0/{FILE}") if "inference" not in str(file)]
        taken = [Fingerprints.load(file) for file in files]
        assert len(taken) == len(ARMS) - 1
        assert all(each.steps == [0, 1, 2, 4, 8, 12] for each in taken)
        assert all(each.streams == taken[0].streams for each in taken)
        assert len(set(taken[0].streams[:-1])) == 5  # they do move
        assert all(each.hashes[0] == taken[0].hashes[0] for each in taken)
        assert all(arm["paired"] in (None, {"weights": True, "data": True, "random": True}) for arm in arms_of(gan))

    def test_other_seeds_have_other_streams(self, gan):
        train("recipe=gan", *SHORT, "seed=1", "hydra.run.dir=one", cwd=gan[0])
        zero, one = (Fingerprints.load(gan[0] / folder / FILE) for folder in ("sweep/detach/seed-0", "one"))
        assert all(a != b for a, b in zip(zero.streams[:-1], one.streams[:-1], strict=True))

    def test_gradients_of_the_first_step(self, gan):
        arms = gan[1]["arms"]
        assert arms["none"]["gradient_cosine"] == {"discriminator": 1.0, "generator": 1.0}
        late = arms["none-late"]["gradient_cosine"]
        assert late["discriminator"] == 1.0
        assert late["generator"] < 0  # D's gradient is larger, and against G's
        assert arms["penalty-detached"]["gradient_cosine"]["discriminator"] < 0.5

    def test_costs(self, gan):
        arms = gan[1]["arms"]
        assert arms["no_grad"]["cost"]["saved_bytes_ratio"] < 1
        assert arms["none"]["cost"]["graph_nodes_ratio"] > 1.2
        assert all(arm["cost"]["peak_memory"] > 0 for arm in arms_of(gan))

    def test_flow_cells_that_differ(self, gan):
        changed = {(c["loss"], c["part"], c["was"], c["is"]) for c in gan[1]["arms"]["none"]["flow"]["changed"]}
        assert changed == {
            ("d_loss", "generator", "blocked", "open"), ("d_loss", "stop.fakes", "blocked", "open"),
        }  # fmt: skip

    def test_rebuilt_from_the_run_directories_alone(self, gan, capsys):
        before = json.loads((gan[0] / "sweep" / "comparison.json").read_text())
        assert main(["compare", str(gan[0] / "sweep"), "--out", str(gan[0] / "again")]) == 0
        again = json.loads((gan[0] / "again" / "comparison.json").read_text())
        for content in (before, again):
            for arm in content["arms"]:
                del arm["runs"]  # their paths are as they were given
        assert before == again


def arms_of(gan):
    return [arm for name, arm in gan[1]["arms"].items() if name != "inference_mode"]


def test_sweep_over_switches_is_compared_against_the_papers_cuts(tmp_path):
    sweep = ["-m", "recipe=dirac_gan", "stop.fakes=none,detach", "seed=0", "trainer=smoke", "hydra.sweep.dir=s"]
    ran = train(*sweep, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert content["reference"] == "fakes-detach"
    assert ran.stdout.count("fakes-none    identical") == 1


def test_ctrl_c_leaves_a_comparison_and_the_sweep_goes_on_where_it_stopped(tmp_path):
    sweep = ["-m", "recipe=dirac_gan", "stop.fakes=detach,no_grad", "seed=0", "hydra.sweep.dir=s", *PAUSED]
    short = ["trainer.max_steps=60", "trainer.val_check_interval=20"]
    process = start(*sweep, *short, cwd=tmp_path, out=tmp_path / "out", err=tmp_path / "err", PAUSE="30")
    first, second = (tmp_path / "s" / f"fakes-{name}" / "seed-0" for name in ("detach", "no_grad"))
    for arm in (first, second):
        assert wait_for((arm / "paused").exists, process), (tmp_path / "err").read_text()
        if arm is second:
            os.kill(process.pid, signal.SIGINT)
        (arm / "paused").unlink()
    process.join(60)
    assert process.exitcode not in (0, None)
    assert "${hydra:runtime.output_dir}" in str(result(first)["replay"]), "as it was given"
    partial = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert [arm["runs"][0]["status"] for arm in partial["arms"]] == ["finished", "interrupted"]
    assert partial["arms"][1]["verdict"] == "cannot_tell"
    assert partial["arms"][1]["first_difference"] is None
    written = (first / "result.json").stat().st_mtime_ns
    ran = train(*sweep, *short, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "dirac_gan: 2 runs into s; 1 finished before"
    assert ran.stdout.splitlines()[1].startswith("run 2 of 2  fakes-no_grad/seed-0  radius ")
    assert (first / "result.json").stat().st_mtime_ns == written
    whole = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert whole["arms"][1]["verdict"] == "identical"
    assert len(list(second.glob("events*"))) <= 2, "events of the interrupted run are gone"
    ran = train(*sweep, "trainer.max_steps=80", short[1], cwd=tmp_path)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "fakes-detach/seed-0 was run with " in line
    assert line.endswith("choose a new directory")


def test_an_arm_that_diverges_is_broken_and_the_sweep_goes_on(tmp_path):
    sweep = ["-m", "recipe=dirac_gan", "recipe.updates=simultaneous,alternating", "seed=0,1", "hydra.sweep.dir=s"]
    ran = train(*sweep, "trainer.max_steps=200", "trainer.val_check_interval=200", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "s" / "comparison.json").read_text())
    told = {arm["name"]: arm for arm in content["arms"]}
    assert told["updates-simultaneous"]["verdict"] == "broken"
    assert re.fullmatch(r"seed 1: radius 3\.8\d is above the line 3", told["updates-simultaneous"]["because"][1])
    assert told["updates-alternating"]["runs"][1]["status"] == "finished"


MUTATE = """
import torch
from lightning.pytorch.callbacks import Callback

class Mutate(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.discriminator[3].weight[5, 7] += 1e-6
"""


@pytest.fixture(scope="module")
def mutated(tmp_path_factory):
    """Two runs of one config; one element of one weight is altered in the second, after step 11."""
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "mutate.py").write_text(MUTATE)
    run = ["recipe=gan", *SHORT, "trainer.max_steps=20", "logger=none"]
    altered = ["+callbacks.mutate={_target_: mutate.Mutate, step: 11}", "allow=[mutate]"]
    for name, more in (("plain", []), ("altered", altered)):
        ran = train(*more, f"hydra.run.dir=s/{name}/seed-0", *run, cwd=folder, PYTHONPATH=str(folder))
        assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture
def replayed_sooner(monkeypatch, mutated):
    """A replay does not start Python anew; that it does is left to :func:`test_a_replay_that_fails_is_one_line`."""

    def run(command, cwd, **options):
        assert command[:2] == [sys.executable, str(ROOT / "train.py")]
        return train(*command[2:], cwd=cwd, PYTHONPATH=str(mutated))

    monkeypatch.setattr("stopgrad.compare.replay.subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("replayed_sooner")
def test_one_altered_element_is_found_with_its_step_and_tensor(mutated, capsys):
    assert main(["compare", str(mutated / "s")]) == 0
    assert "weights differ between steps 8 and 16" in capsys.readouterr().out
    assert main(["compare", str(mutated / "s"), "--replay"]) == 0
    assert "weights differ from step 11, in discriminator.3.weight alone" in capsys.readouterr().out
    (arm,) = (a for a in json.loads((mutated / "s" / "comparison.json").read_text())["arms"] if a["name"] == "altered")
    first = arm["first_difference"]
    assert (first["step"], first["after"], first["exact"]) == (11, 10, True)
    assert (first["tensor"], first["tensors"], first["of"]) == ("discriminator.3.weight", 1, 18)


@pytest.mark.usefixtures("replayed_sooner")
def test_what_a_replay_does_not_reproduce_is_said(mutated, tmp_path, capsys):
    """The same alteration, but by a hand that the config does not know."""
    for arm in ("plain", "altered"):
        folder = tmp_path / arm / "seed-0"
        folder.mkdir(parents=True)
        for name in ("result.json", FILE):
            (folder / name).write_bytes((mutated / "s" / arm / "seed-0" / name).read_bytes())
    file = tmp_path / "altered" / "seed-0" / "result.json"
    recorded = json.loads(file.read_text())
    recorded["replay"]["arguments"] = [a for a in recorded["replay"]["arguments"] if "mutate" not in a]
    file.write_text(json.dumps(recorded))
    assert main(["compare", str(tmp_path), "--replay"]) == 0
    out = capsys.readouterr().out
    assert "replay: gave other weights at step 16: something beside the config changed one of them" in out
    assert "weights differ between steps 8 and 16" in out


def test_a_replay_that_fails_is_one_line(mutated, tmp_path, capsys):
    os.symlink(mutated / "s" / "plain", tmp_path / "plain")
    folder = tmp_path / "altered" / "seed-0"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes((mutated / "s/altered/seed-0" / FILE).read_bytes())
    recorded = result(mutated / "s" / "altered" / "seed-0")
    for replay, message in (
        (None, "its result.json holds no replay command"),
        ({"cwd": str(tmp_path), "arguments": ["-c", "raise SystemExit('no such luck')"]}, "again: no such luck"),
        ({"cwd": str(tmp_path / "nope"), "arguments": []}, "again: .*No such file"),
    ):
        (folder / "result.json").write_text(json.dumps({**recorded, "replay": replay}))
        runs = [str(mutated / "s" / "plain"), str(tmp_path / "altered"), "--reference", "plain"]
        assert main(["compare", *runs, "--replay"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(message) or message.partition(".*")[2] in line


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="no hydra-joblib-launcher: pip install -e '.[parallel]'",
)
def test_arms_side_by_side_are_the_same_runs(tmp_path):
    sweep = ["-m", "recipe=dirac_gan", "stop.fakes=detach,none", "seed=0", "trainer=smoke"]
    train(*sweep, "hydra.sweep.dir=one", cwd=tmp_path)
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=two"]  # it needs a real process
    command = [sys.executable, str(ROOT / "train.py"), *sweep, *joblib, f"cache={ROOT / '.cache'}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    told = [line.partition("  radius")[0].rstrip() for line in ran.stdout.splitlines()[1:3]]
    assert sorted(told) == ["run 1 of 2  fakes-detach/seed-0", "run 2 of 2  fakes-none/seed-0"]
    for arm in ("fakes-detach", "fakes-none"):
        one, two = (result(tmp_path / sweep / arm / "seed-0") for sweep in ("one", "two"))
        assert one["weights_sha256"] == two["weights_sha256"]
    assert (tmp_path / "two" / "comparison.json").exists()


def test_fingerprints_are_about_a_hundred():
    def wanted(most, **options):
        keep = KeepFingerprints("", **options)
        return [step for step in range(most) if keep.wanted(step, SimpleNamespace(max_steps=most))]

    assert wanted(1000) == [0, 1, 2, 4, 8, 16, 32, *range(50, 1000, 50)]
    assert wanted(6000) == [0, 1, 2, 4, 8, 16, 32, *range(60, 6000, 60)]
    assert wanted(20, every_n_steps=7) == [0, 1, 2, 4, 7, 8, 14, 16]
    assert wanted(20, window=[5, 7]) == [5, 6, 7]


def test_a_window_is_the_same_training_and_ends_it(tmp_path):
    run = ["recipe=dirac_gan", "trainer.max_steps=140", "trainer.val_check_interval=70", "logger=none"]
    train(*run, "hydra.run.dir=run", cwd=tmp_path)
    taken = Fingerprints.load(tmp_path / "run" / FILE)
    assert taken.steps == [0, 1, 2, 4, 8, 16, 32, 50, 100, 140]
    train(*run, "callbacks.fingerprints.window=[90,110]", "hydra.run.dir=again", cwd=tmp_path)
    again = Fingerprints.load(tmp_path / "again" / FILE)
    assert again.steps == list(range(90, 111))
    assert again.hashes[10] == taken.hashes[taken.steps.index(100)]


def test_keeping_fingerprints_changes_nothing(tmp_path):
    hashes = set()
    for name, more in (("with", []), ("without", ["~callbacks.fingerprints"])):
        train("recipe=gan", *SHORT, *more, f"hydra.run.dir={name}", cwd=tmp_path)
        hashes.add(result(tmp_path / name)["weights_sha256"])
    assert len(hashes) == 1
    assert not Path(tmp_path, "without", FILE).exists()
    assert torch.is_tensor(Fingerprints.load(tmp_path / "with" / FILE).gradients["generator"])
