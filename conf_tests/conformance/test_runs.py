"""Every recipe runs through train.py and leaves what a run leaves; arms declared identical are."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from conf_tests.conformance.catalogue import (
    COMPARES,
    CONFIGS,
    apart_from_the_cut,
    arms,
    composed,
    declared,
    recipe_of,
    refusal,
    stop_overrides,
)
from conf_tests.conformance.probe import differing, weights_after
from conf_tests.helpers import result, train
from stopgrad.flow.drawing import flow_svg

STEPS = 4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_smoke_run_leaves_everything(name, tmp_path):
    ran = train(f"recipe={name}", "trainer=smoke", "seed=3", *declared(name).small, "hydra.run.dir=run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""  # no tips, no warnings
    folder = tmp_path / "run"
    recorded = result(folder)
    assert (recorded["recipe"], recorded["seed"], recorded["status"], recorded["steps"]) == (name, 3, "finished", 8)
    assert len(recorded["weights_sha256"]) == 64
    assert recorded["saved_bytes"] > 0
    assert recorded["step_time"] > 0
    assert set(recorded["metrics"]) & set(declared(name).metrics), "no metric of METRICS is logged"
    module = sys.modules[get_class(composed(f"recipe={name}").recipe._target_).__module__]
    assert set(recorded["flow"]) == set(module.FLOW)
    assert recorded["violations"] == []
    flow = json.loads((folder / "flow.json").read_text())
    assert set(flow["losses"]) == set(module.FLOW)
    bars = [bar for node in flow["nodes"] for bar in (node, *node.get("held", ()))]
    crossed = {bar["boundary"] for bar in bars if bar.get("boundary")}
    assert crossed | set(flow["uncrossed"]) == set(declared(name).boundaries)
    assert (folder / "flow.svg").read_text() == flow_svg(flow)
    assert recorded["versions"]["torch"] == torch.__version__
    assert OmegaConf.load(folder / "config.yaml").seed == 3
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    for checkpoint in (folder / "checkpoints").iterdir():
        torch.load(checkpoint, weights_only=True)
    assert list(folder.glob("events.out.tfevents.*"))
    assert ran.stdout.splitlines()[-1] == "run"
    assert "finished" in ran.stdout


def same_weights(compare):
    """Groups of arms that must end with the same weights: (why, arms)."""
    of, known = declared(recipe_of(compare)), arms(compare)
    runs = {arm: config for arm, config in known.items() if not refusal(of, stop_overrides(config))}
    expect = composed(f"compare={compare}").compare.expect
    reference = next(iter(known))
    yield "declared identical", [reference, *(arm for arm in runs if expect.get(arm) == "identical")]
    groups = {}
    for arm, config in runs.items():
        groups.setdefault(apart_from_the_cut(config, of.boundaries), []).append(arm)
    if "cuts" not in of.exempt:
        yield from (("only the way to cut differs", group) for group in groups.values())


def unequal(compare, steps, configs):
    """In words, each arm that must end with the weights of another one and does not."""
    kept = {}

    def weights(arm):
        if arm not in kept:
            kept[arm] = weights_after(configs[arm], steps)
        return kept[arm]

    for why, (first, *others) in same_weights(compare):
        for arm in others:
            if differs := differing(weights(first), weights(arm)):
                yield f"compare={compare}: {arm} and {first} ({why}) differ after {steps} steps in {differs[0]}"


@pytest.mark.parametrize("compare", COMPARES)
def test_arms_that_must_be_identical_are(compare):
    found = list(unequal(compare, STEPS, arms(compare)))
    assert not found, "\n".join(found)
