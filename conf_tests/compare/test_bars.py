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


@pytest.mark.long
def test_td(tmp_path):
    found = compare("td", cwd=tmp_path)
    for arm in ("detach", "no_grad", "freeze"):
        assert verdicts(found)[arm] == "broken"
        assert min(values(found, arm, "weight_norm")) > 1e10
    assert found["arms"]["detach"]["same_weights_as"] == ["no_grad", "freeze"]
    assert max(values(found, "none", "weight_norm")) < 10


@pytest.mark.long
def test_td_asplit(tmp_path):
    found = compare("td_asplit", cwd=tmp_path)
    assert verdicts(found)["no_grad"] == verdicts(found)["freeze"] == "identical"
    assert min(values(found, "detach", "value/B")) >= 0.95
    assert values(found, "none", "value/B") == [pytest.approx(0.75, abs=0.03)] * 3
    assert verdicts(found)["none"] == "different_training"


@pytest.mark.long
def test_finetune_linear(tmp_path):
    found = compare("finetune_linear", cwd=tmp_path)
    assert min(values(found, "full", "ood_error")) >= 0.3
    assert max(values(found, "probe", "ood_error") + values(found, "probe-then-full", "ood_error")) <= 0.01
    assert verdicts(found)["full"] == "broken"


@pytest.mark.long
def test_loss_logging(tmp_path):
    found = compare("loss_logging", cwd=tmp_path)
    for arm in ("item", "detach"):
        assert set(values(found, arm, "nodes_a_step") + values(found, arm, "bytes_a_step")) == {0.0}
    assert verdicts(found)["detach"] == "identical"
    assert verdicts(found)["before_backward"] == verdicts(found)["running_sum"] == "broken"
    assert min(values(found, "before_backward", "bytes_a_step")) > 100


@pytest.mark.long
def test_bandit(tmp_path):
    found = compare("bandit", cwd=tmp_path)
    assert verdicts(found)["detach"] == verdicts(found)["freeze"] == "identical"
    assert verdicts(found)["advantage-none"] == "different_training"
    assert max(map(abs, values(found, "no_grad", "health/value_bias"))) <= 0.01


@pytest.mark.long
def test_branch(tmp_path):
    found = compare("branch", cwd=tmp_path)
    reverse, alone, joint = (values(found, arm, "target_accuracy") for arm in ("reverse", "alone", "none"))
    assert all(r >= a + 0.05 and a >= j + 0.05 for r, a, j in zip(reverse, alone, joint, strict=True))


@pytest.mark.long
def test_td3(tmp_path):
    found = compare("td3", cwd=tmp_path, seconds=3600)
    assert verdicts(found)["detach"] == "identical"
    assert min(values(found, "no_grad", "evaluation_return")) > -300
    assert {verdicts(found)[arm] for arm in ("critic-none-late", "action-detach")} == {"broken"}
