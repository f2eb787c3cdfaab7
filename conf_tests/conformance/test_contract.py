"""The contract holds at the defaults; what flips a boundary breaks it, and nothing else does; refusals are declared."""

from __future__ import annotations

import pytest

from conf_tests.conformance.catalogue import (
    COMPARES,
    CONFIGS,
    arms,
    changed,
    choices,
    composed,
    declared,
    recipe_of,
    refusal,
    stop_overrides,
)
from conf_tests.conformance.probe import Refused, violations
from stopgrad.cuts.strategies import flipped

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")


def small(name):
    return composed(f"recipe={name}", *declared(name).small)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_defaults_keep_the_contract(name):
    found, _ = violations(small(name))
    assert not found, "\n".join(violation.text for violation in found)


def wrong(name, config, overrides, boundary=None):
    """What is wrong with one choice of a recipe, in words; or nothing. ``boundary`` is the one that is chosen for."""
    of = declared(name)
    words = refusal(of, overrides)
    try:
        found, contract = violations(config, trained=words is not None)
    except Refused as error:
        if words is None:
            return f"refused: {error}; make it run, or declare it in REFUSES, with words of that message"
        return None if words in str(error) else f"refused in other words than REFUSES has: {error}"
    if words is not None:
        return "declared in REFUSES, and it runs: take it out there"
    if boundary is not None and not any(f"stop.{boundary}" in row for row in contract.values()):
        return f"no row of FLOW names stop.{boundary}"
    expected = flipped(config.stop, of.default_stop, of.boundaries)
    broken = {violation.part for violation in found}
    if broken and not expected:
        return f"breaks the contract, though no boundary is flipped between stopping and passing: {found[0].text}"
    if expected and not broken:
        return f"flips {', '.join(expected)}, and the contract is kept: is the cut where the loss is assembled?"
    if boundary in expected and f"stop.{boundary}" not in broken:
        return f"flips {boundary}, and the contract is broken elsewhere alone: {', '.join(sorted(broken))}"
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_exactly_what_flips_a_boundary_breaks_the_contract(name):
    of, found = declared(name), {}
    for key, choice, overrides in choices(name):
        boundary = key if key in of.boundaries else None
        found[f"stop.{key}={choice}"] = wrong(name, changed(small(name), overrides), overrides, boundary)
    for override in {*of.refuses} - {*found, "compile=true", "compile=update"}:
        found[override] = wrong(name, composed(f"recipe={name}", *of.small, override), [override])
    assert not any(found.values()), "\n".join(f"recipe={name} {key}: {text}" for key, text in found.items() if text)


@pytest.mark.parametrize("compare", COMPARES)
def test_exactly_the_arms_that_flip_a_boundary_break_the_contract(compare):
    name = recipe_of(compare)
    found = {arm: wrong(name, config, stop_overrides(config)) for arm, config in arms(compare).items()}
    assert not any(found.values()), "\n".join(f"compare={compare} {arm}: {text}" for arm, text in found.items() if text)
