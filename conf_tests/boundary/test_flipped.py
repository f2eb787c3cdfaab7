"""Which choices stop what by default passes: the rule by which a broken contract is expected."""

import pytest
import torch
from torch import nn

from stopgrad import Boundary, Stops
from stopgrad.cuts.strategies import OFFERED, TAKES_FACTOR, Strategy, flipped, spelling, stops

CHOICES = [f"{s.value}:0.5" if s in TAKES_FACTOR else s.value for s in Strategy] + ["scale:0", *OFFERED]
DEFAULT = {"fakes": "detach", "trunk": "none", "history": "item"}


@pytest.mark.parametrize("choice", CHOICES)
def test_stops_is_what_the_boundary_does(choice):
    producer, consumer = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    value = Boundary("value", choice, offered=OFFERED)(producer, torch.ones(1, 2))
    (value + consumer).sum().backward()
    assert stops(choice) == (producer.weight.grad is None)


@pytest.mark.parametrize(
    ("stop", "found"),
    [
        ({}, []),
        (DEFAULT, []),
        ({"fakes": "no_grad"}, []),
        ({"fakes": "cached"}, []),
        ({"fakes": "none"}, ["fakes"]),
        ({"fakes": "scale:0.1"}, ["fakes"]),
        ({"trunk": "scale:0.1"}, []),
        ({"trunk": "reverse:1"}, []),
        ({"trunk": "detach"}, ["trunk"]),
        ({"fakes": "reverse:1", "trunk": "freeze"}, ["fakes", "trunk"]),
        ({"fakes": "scale:0"}, ["fakes"]),  # zeros: a leak where nothing must cross,
        ({"trunk": "scale:0"}, ["trunk"]),  # and nothing learnt where something must
        ({"history": "none"}, []),  # a switch
    ],
    ids=str,
)
def test_flipped(stop, found):
    assert flipped(stop, DEFAULT, ["fakes", "trunk"]) == found


def test_a_strategy_that_is_none_is_refused():
    with pytest.raises(ValueError, match=f"strategy=late: choose one of none, .*{spelling('scale')}"):
        stops("late")


def test_stops_know_what_they_flip():
    boundaries = {"fakes": ["detach", "no_grad", "none"], "trunk": ["none", "detach", "scale"]}
    assert Stops({}, boundaries).flipped == []
    assert Stops({"fakes": "no_grad", "trunk": "scale:0.5"}, boundaries).flipped == []
    assert Stops({"trunk": "detach", "history": "none"}, boundaries, {"history": ["item", "none"]}).flipped == ["trunk"]
