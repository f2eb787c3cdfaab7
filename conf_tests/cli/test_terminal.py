"""What a person sees: one line a run in a sweep, a bar of few words, and warnings only of what nobody asked for."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from torch import nn

from conf_tests.audit.test_lightning import Gan, fit
from conf_tests.helpers import ROOT, result, train
from stopgrad import FlowContract, GradientLeak
from stopgrad.runner import names, terminal
from stopgrad.runner.contract import ContractAudit, in_a_line
from stopgrad.runner.progress import Planned, Sweep, _placed, duration

SMOKE = ["recipe=dirac_gan", "trainer=smoke"]
LEAK = """
from lightning.pytorch.callbacks import Callback
from stopgrad import Boundary

class Leak(Callback):
    def setup(self, trainer, module, stage):
        module.stop.boundaries["fakes"] = Boundary("fakes", "none")  # though the config says detach
"""


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    monkeypatch.setattr(Sweep, "now", None)
    monkeypatch.setattr(names, "COMMON", None)


class TestSweep:
    def test_one_line_a_run_and_no_warning_of_a_leak_that_was_asked_for(self, tmp_path):
        ran = train("-m", *SMOKE, "stop.fakes=detach,none", "seed=0,1", "hydra.sweep.dir=s", cwd=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        header, *lines = ran.stdout.splitlines()
        assert header == "dirac_gan: 4 runs into s"
        runs = ["fakes-detach/seed-0", "fakes-detach/seed-1", "fakes-none/seed-0", "fakes-none/seed-1"]
        for number, (run, line) in enumerate(zip(runs, lines, strict=False), start=1):
            left = r", [\d.]+ s left" if number < 4 else ""
            assert re.fullmatch(rf"run {number} of 4  {run:<19}  radius 1\.38 +[\d.]+ s{left}", line), line
        assert lines[4] == ""
        assert lines[5].split() == ["arm", "verdict", "contract", "radius", "from", "step", "time", "bytes", "nodes"]
        assert [line.split()[:3] for line in lines[6:8]] == [
            ["fakes-detach", "reference", "kept"], ["fakes-none", "identical", "broken"],
        ]  # fmt: skip
        assert lines[-2:] == ["s/comparison.html", "python -m stopgrad board s"]

    def test_named_arms_by_arm_and_seed(self, tmp_path):
        sweep = ["-m", "compare=td", "arm=detach,none", "seed=3,5", "trainer=smoke", "hydra.sweep.dir=s"]
        lines = train(*sweep, cwd=tmp_path).stdout.splitlines()
        arms = ((1, "detach"), (2, "none  "))
        told = [f"arm {arm} of 2, seed {seed} of 2  {name}" for arm, name in arms for seed in (1, 2)]
        assert [line.partition("  value_error")[0] for line in lines[1:5]] == told

    def test_verbose_is_the_old_form(self, tmp_path):
        ran = train("-m", *SMOKE, "seed=0,1", "hydra.sweep.dir=s", "hydra.verbose=true", cwd=tmp_path)
        assert "[HYDRA] Launching 2 jobs locally" in ran.stdout
        assert ran.stdout.count("KiB saved for backward\ns/default/seed-") == 2
        assert "run 1 of 2" not in ran.stdout
        again = train("-m", *SMOKE, "seed=0,1", "hydra.sweep.dir=s", "hydra.verbose=HYDRA", cwd=tmp_path)
        assert again.stdout.count(": finished before") == 2

    def test_an_arm_that_raises_is_one_line(self, tmp_path):
        ran = train("-m", "trainer=smoke", "stop.fakes=detach,inference_mode", "hydra.sweep.dir=s", cwd=tmp_path)
        assert ran.stderr == ""
        assert re.match(r"run 2 of 2  fakes-inference_mode/seed-0  raised RuntimeError  ", ran.stdout.splitlines()[2])

    def test_ranks_say_it_once(self, tmp_path):
        short = [f"trainer.{key}=4" for key in ("max_steps", "val_check_interval", "log_every_n_steps")]
        sweep = ["-m", "recipe=dirac_gan", "trainer=ddp", *short, "stop.fakes=detach,none", "hydra.sweep.dir=s"]
        ran = train(*sweep, cwd=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert [line.partition("  radius")[0].rstrip() for line in ran.stdout.splitlines()[1:3]] == [
            "run 1 of 2  fakes-detach/seed-0", "run 2 of 2  fakes-none/seed-0",
        ]  # fmt: skip


class TestContract:
    @pytest.fixture
    def leaky(self, tmp_path):
        (tmp_path / "leaky.py").write_text(LEAK)
        return ["+callbacks.leak={_target_: leaky.Leak}", "allow=[leaky]"], {"PYTHONPATH": str(tmp_path)}

    def start(self, *overrides, cwd, **env):
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=200)

    def test_broken_by_nobodys_wish_is_one_line_at_once(self, leaky, tmp_path):
        ran = self.start(*SMOKE, *leaky[0], cwd=tmp_path, **leaky[1])
        told = "contract broken, though no boundary is flipped: d_loss reaches generator and stop.fakes"
        assert (ran.returncode, ran.stderr) == (0, f"warning: {told}\n")
        assert told in ran.stdout
        assert result(tmp_path / "runs/dirac_gan/default/seed-0")["contract"]["flipped"] == []

    def test_in_a_sweep_it_names_the_run(self, leaky, tmp_path):
        ran = self.start("-m", *SMOKE, "seed=0,1", *leaky[0], "hydra.sweep.dir=s", cwd=tmp_path, **leaky[1])
        assert [line.partition(":")[2].partition(":")[0].strip() for line in ran.stderr.splitlines()] == [
            "run 1 of 2, default/seed-0", "run 2 of 2, default/seed-1",
        ]  # fmt: skip

    def test_raise_raises_though_it_was_asked_for(self, tmp_path):
        ran = train(*SMOKE, "stop.fakes=none", "callbacks.flow.on_violation=raise", cwd=tmp_path)
        assert "GradientLeak: d_loss reaches generator" in ran.stderr

    def test_graphs_that_are_kept_on_purpose_are_told_at_the_end(self, tmp_path):
        run = [
            "recipe=loss_logging",
            "stop.history=running_sum",
            "trainer=smoke",
            "callbacks.retention.every_n_steps=3",
        ]
        ran = train(*run, cwd=tmp_path)
        assert ran.stderr == ""
        assert "\nmodule.history.total keeps a tensor with a graph of " in ran.stdout


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
class TestContractAudit:
    def told(self, module, capsys, **options):
        audit = ContractAudit(**options)
        fit(module, audit)
        return audit, [line for line in capsys.readouterr().err.splitlines() if "contract" in line]

    def test_what_a_flipped_boundary_breaks_is_not_said(self, capsys):
        audit, lines = self.told(Gan(fakes="none"), capsys)
        assert (audit.flipped, lines) == (["fakes"], [])
        assert in_a_line(audit.violations) == "d_loss reaches generator and stop.fakes"

    def test_a_boundary_that_the_contract_does_not_name_explains_nothing(self, capsys):
        module = Gan(discriminator="none")
        parts = {loss: {part: s for part, s in row.items() if "stop." not in part} for loss, row in Gan.FLOW.items()}
        module.FLOW = FlowContract(parts)
        audit, lines = self.told(module, capsys, every_n_steps=1)
        assert audit.flipped == []
        assert lines == ["warning: contract broken, though no boundary is flipped: g_loss reaches discriminator"]

    def test_raise_raises(self, capsys):
        with pytest.raises(GradientLeak, match="d_loss reaches generator"):
            self.told(Gan(fakes="none"), capsys, on_violation="raise")


class TestWhere:
    """Where a sweep is, from what lies on disk."""

    @pytest.fixture
    def sweep(self, tmp_path):
        found = [(f"{arm}/seed-{seed}", arm, seed) for arm in ("a", "b") for seed in (0, 1)]
        return Sweep(tmp_path, "gan", list(_placed(found, tmp_path)), started=time.time() - 1000)

    def end(self, run, seconds, status="finished", before=False):
        run.folder.mkdir(parents=True, exist_ok=True)
        file = run.folder / "result.json"
        file.write_text(json.dumps({"status": status, "seconds": seconds}))
        if before:
            os.utime(file, (1, 1))

    def go(self, run):
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").touch()

    def test_nothing_is_known_before_a_run_has_ended(self, sweep):
        assert sweep.seconds_left(sweep.planned[0].folder) is None

    def test_one_after_the_other(self, sweep):
        self.end(sweep.planned[0], 10)
        assert sweep.seconds_left(sweep.planned[0].folder) == 30
        self.go(sweep.planned[1])
        assert sweep.seconds_left(sweep.planned[1].folder) == 30  # the run that asks is one of the three
        self.end(sweep.planned[1], 20)
        assert sweep.seconds_left(sweep.planned[1].folder) == 30  # two of 15

    def test_side_by_side(self, sweep):
        self.end(sweep.planned[0], 10)
        self.go(sweep.planned[1])
        assert sweep.seconds_left(sweep.planned[0].folder) == 15  # three of 10, two at a time

    def test_side_by_side_by_the_work_done(self, sweep):
        sweep.started = time.time() - 10
        for run in sweep.planned[:2]:
            self.end(run, 10)
        assert sweep.seconds_left(sweep.planned[0].folder) == 10  # two of 10, two at a time

    def test_what_was_there_before_is_no_measure_of_the_pace(self, sweep):
        self.end(sweep.planned[0], 500, before=True)
        self.end(sweep.planned[1], 500, status="interrupted", before=True)  # which starts anew
        self.end(sweep.planned[2], 10)
        assert sweep.seconds_left(sweep.planned[2].folder) == 20
        assert str(sweep).endswith("; 1 finished before")

    def test_a_damaged_result_is_still_to_come(self, sweep):
        self.end(sweep.planned[0], 10)
        sweep.planned[1].folder.mkdir(parents=True)
        (sweep.planned[1].folder / "result.json").write_text("{")
        assert sweep.seconds_left(sweep.planned[0].folder) == 30

    def test_at_the_end_nothing_is_left(self, sweep):
        for run in sweep.planned:
            self.end(run, 10)
        assert sweep.seconds_left(sweep.planned[3].folder) == 0

    @pytest.mark.parametrize(
        ("found", "places"),
        [
            ([("a", 0), ("a", 1), ("b", 0), ("b", 1)], ["arm 1 of 2, seed 1 of 2", "arm 2 of 2, seed 2 of 2"]),
            ([("a", 0), ("b", 0)], ["arm 1 of 2", "arm 2 of 2"]),
            ([("a", 0), ("b", 1)], ["run 1 of 2", "run 2 of 2"]),  # no product
            ([("a", 0), ("a", 0)], ["run 1 of 2", "run 2 of 2"]),
            ([(None, 0), (None, 1)], ["run 1 of 2", "run 2 of 2"]),  # no named arms
            ([("a", k) for k in range(10)], ["arm 1 of 1, seed 1 of 10", "arm 1 of 1, seed 10 of 10"]),
            ([(None, k) for k in range(10)], ["run  1 of 10", "run 10 of 10"]),
        ],
    )
    def test_places(self, found, places, tmp_path):
        placed = list(_placed([(f"{arm}/{seed}", arm, seed) for arm, seed in found], tmp_path))
        assert [placed[0].place, placed[-1].place] == places

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0.13, "0.1 s"), (1.4, "1 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7800, "2 h 10 min")],
    )
    def test_duration(self, seconds, words):
        assert duration(seconds) == words


class TestNames:
    """The name of an arm is what tells it from the others."""

    def name(self, *overrides, common=None, monkeypatch, **config):
        monkeypatch.setattr(names, "COMMON", None if common is None else set(common))
        hydra = {"overrides": {"task": list(overrides)}}
        root = {"arm": None, "mode": "train", "ckpt_path": None, **config, "hydra": hydra}
        return names.arm_name(_root_=OmegaConf.create(root))

    def test_of_one_run(self, monkeypatch):
        assert self.name("recipe=gan", "stop.fakes=none", "recipe.width=8", "seed=1", monkeypatch=monkeypatch) == (
            "fakes-none_width-8"
        )
        assert self.name("allow=[mine]", "+callbacks.a=b", monkeypatch=monkeypatch) == "default"

    @pytest.mark.parametrize(
        ("overrides", "common", "name"),
        [
            (["stop.fakes=none", "recipe.width=8"], ["recipe.width=8"], "fakes-none"),
            (["recipe.width=8", "seed=1"], ["recipe.width=8"], "width-8"),  # nothing else tells what it is
            (["trainer.max_steps=100", "seed=1"], [], "max_steps-100"),  # swept over, so it must be said
            (["recipe=gan", "seed=1"], [], "recipe-gan"),
            (["seed=1"], [], "default"),
        ],
    )
    def test_in_a_sweep(self, overrides, common, name, monkeypatch):
        assert self.name(*overrides, common=common, monkeypatch=monkeypatch) == name

    @pytest.mark.parametrize(
        ("file", "name"),
        [("runs/gan/default/seed-0/checkpoints/best.ckpt", "evaluate-default-seed-0-best"), ("x.ckpt", "evaluate-x")],
    )
    def test_an_evaluation_names_its_checkpoint(self, file, name, monkeypatch):
        overrides = ["mode=evaluate", f"ckpt_path={file}"]
        assert self.name(*overrides, mode="evaluate", ckpt_path=file, monkeypatch=monkeypatch) == name


def test_lengths_that_are_swept_over_are_arms_of_their_own(tmp_path):
    sweep = ["-m", "recipe=dirac_gan", "trainer.max_steps=4,8", "trainer.val_check_interval=4", "hydra.sweep.dir=s"]
    ran = train(*sweep, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [result(tmp_path / f"s/max_steps-{n}/seed-0")["steps"] for n in (4, 8)] == [4, 8]
    assert (
        "with trainer.max_steps=8; equal weights up to step 4; cannot be told: 8 steps here, 4 in the reference."
        in (ran.stdout)
    )


METRICS = {"score": {}, "error": {}}


class Recipe(nn.Module):
    """Declares ``score`` and ``error``, of this module's ``METRICS``."""


class TestBar:
    def test_at_most_three_metrics_the_declared_ones_first(self):
        logged = {"loss/d": 1.0, "loss/g": 2.0, "score": 3.0}
        shown = terminal.Bar().get_metrics(SimpleNamespace(progress_bar_metrics=logged), Recipe())
        assert list(shown.items()) == [("score", 3.0), ("loss/d", 1.0), ("loss/g", 2.0)]
        logged |= {"error": 4.0}
        assert list(terminal.Bar().get_metrics(SimpleNamespace(progress_bar_metrics=logged), Recipe())) == [
            "score", "error", "loss/d",
        ]  # fmt: skip

    def test_in_a_terminal(self, tmp_path):
        run = ["recipe=td", "trainer.max_steps=300", "trainer.val_check_interval=100"]
        screen = on_a_terminal(*run, cwd=tmp_path)
        (first, *_), bars = screen.rsplit("\r\n", 5), re.findall(r"[^\r\n]*?/300  [^\r\n]*", screen)
        assert "v_num" not in first
        assert "Epoch" not in first
        line = re.compile(r" *[█▏▎▍▌▋▊▉ ]* *\d+/300  +[\d.?]+/s  [\d:?]+ left((?:  \S+ \S+){0,3}) *(\x1b\[A)?")
        assert bars
        assert [bar for bar in bars if not line.fullmatch(bar)] == []
        assert "  value_error " in bars[-1]

    def test_in_a_sweep_it_begins_with_the_place(self, tmp_path):
        run = ["-m", "recipe=td", "trainer.max_steps=300", "trainer.val_check_interval=100", "seed=0,1"]
        screen = on_a_terminal(*run, "hydra.sweep.dir=s", cwd=tmp_path)
        assert re.search(r"\rrun 1 of 2  [█▏▎▍▌▋▊▉ ]+\d+/300  ", screen)
        assert re.search(r"\rrun 2 of 2 \([\d.]+ s left\)  [█▏▎▍▌▋▊▉ ]+\d+/300  ", screen)

    def test_none_where_runs_go_side_by_side_or_nobody_watches(self, monkeypatch):
        launcher = {"_target_": "basic_launcher.BasicLauncher"}
        hydra = SimpleNamespace(mode=RunMode.MULTIRUN, launcher=OmegaConf.create(launcher))
        monkeypatch.setattr(terminal.HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(terminal.HydraConfig, "get", lambda: hydra)
        monkeypatch.setattr(terminal.sys, "stderr", SimpleNamespace(isatty=lambda: True))
        assert isinstance(terminal.progress_bar(), terminal.Bar)
        hydra.launcher._target_ = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
        assert terminal.progress_bar() is None
        hydra.mode = RunMode.RUN
        assert isinstance(terminal.progress_bar(), terminal.Bar)
        monkeypatch.setattr(terminal.sys, "stderr", SimpleNamespace(isatty=lambda: False))
        assert terminal.progress_bar() is None


def on_a_terminal(*overrides, cwd):
    """What a terminal of 100 columns is sent."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "40"], stdin=theirs, check=True)
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    process = subprocess.Popen(command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = b""
    while True:
        try:
            sent += os.read(ours, 4096)
        except OSError:  # the process has closed it
            break
    os.close(ours)
    assert process.wait(60) == 0, sent.decode()
    return sent.decode()


def test_outcome_in_a_few_words():
    def said(**run):
        recorded = {"steps": 812, "metrics": {"b": 2.0, "a": 1.23456}, "metrics_declared": {"a": {}, "b": {}}}
        return terminal.outcome(recorded | run)

    assert said(status="finished") == "a 1.23"
    assert said(status="finished", metrics_declared={}) == "finished"
    assert said(status="interrupted") == "interrupted after 812 steps"
    assert said(status="raised", error="NonFiniteLoss", message="d_loss is nan at step 812") == (
        "raised: d_loss is nan at step 812"
    )
    assert said(status="raised", error="RuntimeError", message="x" * 51) == "raised RuntimeError"


def test_a_run_that_was_not_planned_is_named_by_its_folder(tmp_path):
    run = Sweep(tmp_path, "gan", []).run_in(tmp_path / "some" / "seed-0")
    assert run == Planned(tmp_path / "some" / "seed-0", "some/seed-0", "run")
