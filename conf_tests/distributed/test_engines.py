"""A sweep on Ray, where it is installed, and the benchmark that awaits a GPU, on a CPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

from conf_tests.helpers import ROOT, result, train


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install -e '.[ray]'")
def test_arms_side_by_side_on_a_local_ray(tmp_path):
    arms = ["-m", "compare=gan", "arm=detach,none", "seed=0", "trainer=smoke", "hydra/launcher=ray_local"]
    ran = train(*arms, "hydra.sweep.dir=s", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    detach, none = (result(tmp_path / "s" / arm / "seed-0") for arm in ("detach", "none"))
    assert detach["weights_sha256"] == none["weights_sha256"]


def test_gpu_benchmark_runs_on_a_cpu():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device=cpu", "--steps=12", "--json"]
    ran = subprocess.run([*command, "dirac_gan", "gan"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    for row in json.loads(ran.stdout)["recipes"]:
        assert row["waits"] == 0  # no step waits for the device, but where the run logs
        assert row["milliseconds"] > 0
        assert row["peak_memory"] > 0
