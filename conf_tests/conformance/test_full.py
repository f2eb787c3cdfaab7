"""The full tier: resumed, compiled, and after 500 steps, every recipe is what it is in a run that is left alone."""

from __future__ import annotations

import shutil

import pytest

from conf_tests.conformance.catalogue import COMPARES, CONFIGS, arms, composed, declared
from conf_tests.conformance.test_runs import unequal
from conf_tests.helpers import build_recipe, result, train

STEPS = 500


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.full, *([pytest.mark.sample] if n == "td" else [])]) for n in CONFIGS]
)
def test_a_resumed_run_ends_as_one_that_was_left_alone(name, tmp_path):
    of = declared(name)
    if "resume" in of.exempt:
        pytest.skip(of.exempt["resume"])
    run = [f"recipe={name}", *of.small, "seed=1", "trainer.val_check_interval=10", "trainer.log_every_n_steps=10"]
    last = "ckpt_path=part/checkpoints/last.ckpt"
    for steps, folder, more in ((30, "whole", []), (20, "part", []), (30, "resumed", [last])):
        ran = train(*run, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}", *more, cwd=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
    whole, resumed = result(tmp_path / "whole"), result(tmp_path / "resumed")
    assert resumed["steps"] == whole["steps"] == 30
    assert resumed["weights_sha256"] == whole["weights_sha256"] != result(tmp_path / "part")["weights_sha256"]
    untimed = {key: value for key, value in whole["metrics"].items() if "per_second" not in key}
    assert {key: resumed["metrics"][key] for key in untimed} == untimed


@pytest.mark.full
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("compile", ["true", "update"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiled_run_gives_the_same_metrics(name, compile, tmp_path):
    of = declared(name)
    run = [f"recipe={name}", *of.small, "trainer=smoke", "trainer.max_steps=4", "callbacks.flow=null", "logger=none"]
    ran = train(*run, f"compile={compile}", "hydra.run.dir=compiled", cwd=tmp_path)
    if words := of.refuses.get(f"compile={compile}"):
        assert ran.returncode != 0, f"declared refused, and it runs: take compile={compile} out of REFUSES"
        assert words in ran.stderr
        return
    assert ran.returncode == 0, ran.stderr
    assert train(*run, "hydra.run.dir=eager", cwd=tmp_path).returncode == 0
    eager, compiled = result(tmp_path / "eager"), result(tmp_path / "compiled")
    assert eager["status"] == compiled["status"] == "finished"
    judged = {key: value for key, value in eager["metrics"].items() if "per_second" not in key}
    assert {key: compiled["metrics"][key] for key in judged} == pytest.approx(judged, rel=1e-3, abs=1e-4)
    assert eager["compiled"] == []
    if compile == "update":
        assert sorted(compiled["compiled"]) == sorted(build_recipe(f"recipe={name}", *of.small).FLOW)


@pytest.mark.full
@pytest.mark.parametrize("compare", COMPARES)
def test_arms_that_must_be_identical_are_to_the_end(compare):
    """After 500 steps of the sizes that the comparison runs with, or as many as it runs."""
    steps = min(STEPS, composed(f"compare={compare}").trainer.max_steps)
    found = list(unequal(compare, steps, arms(compare, small=False)))
    assert not found, "\n".join(found)
