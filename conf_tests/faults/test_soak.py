"""A person starts these: `pytest -m long conf_tests/faults`; CI runs a short one of each."""

import random
from pathlib import Path

import pytest

from conf_tests.conformance.catalogue import CONFIGS
from conf_tests.faults import fuzz, kills


def test_twenty_malformed_inputs():
    assert list(fuzz.failures(2, range(20))) == []


@pytest.mark.long
def test_four_hundred_malformed_inputs():
    assert list(fuzz.failures(0, range(400))) == []


def killed(folder: Path, recipes: list[str], numbers: range) -> list[str]:
    outcomes, left = [], {}
    for number in numbers:
        recipe = recipes[number % len(recipes)]
        here = folder / str(number)
        here.mkdir()
        if recipe not in left:
            left[recipe] = kills.Left(recipe, here)
        outcomes.append(kills.kill(recipe, left[recipe], here, number % 5 == 4, random.Random(number)))
    return [outcome for outcome in outcomes if not outcome.endswith("same bits")]


def test_two_kills(tmp_path):
    assert killed(tmp_path, ["dirac_gan"], range(3, 5)) == []  # the second while a checkpoint is written


@pytest.mark.long
def test_fifty_kills_over_all_recipes(tmp_path):
    assert killed(tmp_path, list(CONFIGS), range(50)) == []
