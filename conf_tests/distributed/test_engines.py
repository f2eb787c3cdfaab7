"""A sweep on Ray, where it is installed."""

import importlib.util

import pytest

from conf_tests.helpers import result, train


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install -e '.[ray]'")
def test_arms_side_by_side_on_a_local_ray(tmp_path):
    arms = ["-m", "compare=gan", "arm=detach,none", "seed=0", "trainer=smoke", "hydra/launcher=ray_local"]
    ran = train(*arms, "hydra.sweep.dir=s", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    detach, none = (result(tmp_path / "s" / arm / "seed-0") for arm in ("detach", "none"))
    assert detach["weights_sha256"] == none["weights_sha256"]
