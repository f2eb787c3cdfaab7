"""What ``compile=true`` hands to torch.compile; that it changes no result is in conf_tests/conformance/test_full.py."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from conf_tests.helpers import build_recipe
from stopgrad.runner.compiling import compile_networks


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
