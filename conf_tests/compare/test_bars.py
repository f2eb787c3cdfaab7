"""Each of ``configs/compare/`` shows its published effect: read from its ``comparison.json``, minutes each."""

import pytest

from conf_tests.helpers import compare

IDENTICAL = ["no_grad", "freeze", "detach_", "data", "none", "discriminator-none"]


def verdicts(comparison):
    return {name: arm["verdict"] for name, arm in comparison["arms"].items()}


def values(comparison, arm, metric):
    """The metric's final value, by seed."""
    return list(comparison["arms"][arm]["metrics"][metric]["values"].values())


@pytest.mark.long
def test_gan(tmp_path):
    found = compare("gan", cwd=tmp_path)
    told = verdicts(found)
    assert {name for name, verdict in told.items() if verdict == "identical"} == set(IDENTICAL)
    assert told["inference_mode"] == "raised"
    assert {told[name] for name in ("none-late", "penalty-detached", "penalty-no_create_graph")} == {"broken"}
    for start, end in zip(values(found, "detach", "frechet_start"), values(found, "detach", "frechet"), strict=True):
        assert end < 0.05 * start
    for start, end in zip(
        values(found, "none-late", "frechet_start"), values(found, "none-late", "frechet"), strict=True
    ):
        assert end > start
    assert all(0.8 < slope < 1.2 for slope in values(found, "detach", "health/slope"))
    assert all(slope > 20 for slope in values(found, "penalty-detached", "health/slope"))
