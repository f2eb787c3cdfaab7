"""``compile=true`` changes the speed, not the result."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from conf_tests.helpers import build_recipe, result, train
from stopgrad.runner.build import compile_networks
from stopgrad.runner.declared import recipe_configs


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile is given, which then runs as it is."""
    torch.compiler.reset()
    seen = []

    def keep(graph, example):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return seen


@pytest.mark.parametrize(("penalty", "networks"), [("none", 2), ("r1", 1)])
def test_every_network_is_compiled_but_one_that_needs_second_derivatives(penalty, networks, graphs):
    recipe = build_recipe("recipe=gan", f"recipe.penalty={penalty}")
    compile_networks(recipe)
    with torch.no_grad():
        recipe.discriminator(recipe.generator(recipe.noise(4)))
    assert len(graphs) == networks


def test_many_networks_are_compiled(graphs):
    """Their wrapper is one function, which PyTorch would compile eight times and then give up."""
    recipe = L.LightningModule()
    for number in range(12):
        recipe.add_module(f"network_{number}", torch.nn.Sequential(*(torch.nn.Tanh() for _ in range(number + 1))))
    compile_networks(recipe)
    for network in recipe.children():
        network(torch.ones(1, 2))
    assert len(graphs) == 12


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("recipe", recipe_configs())
def test_the_metrics_agree(recipe: str, tmp_path: Path) -> None:
    found = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        ran = train(
            *(f"recipe={recipe}", "trainer=smoke", "trainer.max_steps=4", "callbacks.flow=null", "logger=none"),
            *(f"compile={compiled}", f"hydra.run.dir={folder}"),
            cwd=tmp_path,
        )
        assert ran.returncode == 0, ran.stderr
        found.append(result(folder))
    eager, compiled = found
    assert eager["status"] == compiled["status"] == "finished"
    judged = {name: value for name, value in eager["metrics"].items() if "per_second" not in name}
    assert {name: compiled["metrics"][name] for name in judged} == pytest.approx(judged, rel=1e-3, abs=1e-4)
