"""Every comparison, whole: each arm ends as its config declares. Minutes each; `pytest -m long`."""

import pytest

from conf_tests.conformance.catalogue import COMPARES
from conf_tests.helpers import comparison


@pytest.mark.long
@pytest.mark.parametrize("compare", COMPARES)
def test_every_arm_ends_as_declared(compare):
    found = {name: (arm["verdict"], arm["expected"]) for name, arm in comparison(compare)["arms"].items()}
    del found[comparison(compare)["reference"]]
    otherwise = {name: f"{verdict}, expected {word}" for name, (verdict, word) in found.items() if verdict != word}
    assert not otherwise
