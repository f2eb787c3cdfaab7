"""``ablate`` over the plain scripts gives the verdicts that the recipes' comparisons declare, by the same metrics."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from conf_tests.helpers import ROOT
from conf_tests.watch.processes import python
from stopgrad.runner.declared import declaration

# Of each script: the arms of the recipe's comparison, as stops of the script, each found by the text of its line.
FAKES, D_CLEAR, G_CLEAR = "generator(torch.randn(BATCH, LATENT)).detach()", "d_optimizer.zero", "g_optimizer.zero"
ARMS = {
    "td": {
        "no_grad": {"value(following).detach()": "no_grad"},
        "freeze": {"value(following).detach()": "freeze"},
        "none": {"value(following).detach()": "none"},
        "scale-0.05": {"value(following).detach()": "scale:0.05"},
        "scale-0.2": {"value(following).detach()": "scale:0.2"},
    },
    "dirac_gan": {
        "none": {"fake = theta.detach()": "none"},
        "none-late": {"fake = theta.detach()": "none", G_CLEAR: "late"},
    },
    "gan": {
        "no_grad": {FAKES: "no_grad"},
        "freeze": {FAKES: "freeze"},
        "data": {FAKES: "data"},
        "none": {FAKES: "none"},
        "none-late": {FAKES: "none", G_CLEAR: "late"},
        "inference_mode": {FAKES: "inference_mode"},
        "discriminator-none": {"discriminator.requires_grad_(False)": "none"},
    },
    "branch": {
        "no_grad": {"trunk(both).detach()": "no_grad"},
        "freeze": {"trunk(both).detach()": "freeze"},
        "none": {"trunk(both).detach()": "none"},
    },
    "finetune": {
        "no_grad": {"backbone(new_images[here]).detach()": "no_grad"},
        "freeze": {"backbone(new_images[here]).detach()": "freeze"},
    },
    "td3": {
        "target-none": {"with torch.no_grad():  # the cut: the target": "none"},
        "critic-none": {"critic.requires_grad_(False)": "none"},
        "critic-none-late": {"critic.requires_grad_(False)": "none", "critic_optimizer.zero": "late"},
    },
    "actor_critic": {"both-none": {"with torch.no_grad():  # the cut": "none"}},
}

NOT_PRINTED = {"health/slope", "health/value_bias"}


def arms(name: str) -> list[str]:
    lines = (ROOT / "benchmarks" / "plain" / f"{name}.py").read_text().splitlines()
    given = []
    for arm, changes in ARMS[name].items():
        sites = []
        for text, strategy in changes.items():
            (line,) = (number for number, each in enumerate(lines, 1) if text in each)
            sites.append(f"{line}={strategy}")
        given += ["--arm", f"{arm}: {', '.join(sites)}"]
    return given


def rules(name: str) -> list[str]:
    """The recipe's metrics, as far as its script prints them."""
    given = []
    for metric, rule in declaration(f"recipes.{name}.X").metrics.items():
        if metric not in NOT_PRINTED:
            given += ["--margin", f"{metric}={rule['margin']}"]
            for side, sign in (("above", ">"), ("below", "<")):
                given += ["--broken", f"{metric}{sign}{rule[f'broken_{side}']}"] if f"broken_{side}" in rule else []
    return given


def expected(name: str) -> dict[str, str]:
    return yaml.safe_load((ROOT / "configs" / "compare" / f"{name}.yaml").read_text())["compare"]["expect"]


def verdicts(name: str, folder, *options: str) -> dict[str, str]:
    script = ROOT / "benchmarks" / "plain" / f"{name}.py"
    given = ["--json", "arms.json", *arms(name), *rules(name), *options]
    ran = python("-m", "stopgrad", "ablate", *given, script, "--seed", "{seed}", cwd=folder, seconds=3600)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((folder / "arms.json").read_text())["arms"]
    return {arm["name"]: arm["verdict"] for arm in found if arm["name"] != "reference"}


def test_the_arms_end_as_the_recipe_declares(tmp_path):
    said = expected("dirac_gan")
    assert verdicts("dirac_gan", tmp_path) == {arm: said[arm] for arm in ARMS["dirac_gan"]}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ARMS if name != "dirac_gan"])
def test_the_arms_of_larger_scripts_end_as_the_recipe_declares(name, tmp_path):
    said = expected(name)
    assert verdicts(name, tmp_path, "--seeds", "0,1,2") == {arm: said[arm] for arm in ARMS[name]}


def test_every_line_is_found_in_its_script():
    for name in ARMS:
        assert len(re.findall("--arm", " ".join(arms(name)))) == len(ARMS[name])
        assert set(ARMS[name]) <= set(expected(name))
        assert rules(name)
