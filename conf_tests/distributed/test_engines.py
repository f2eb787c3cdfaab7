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


def gpu_check(file, *more):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--check", "--device=cpu", "--small", "--workers=1"]
    return subprocess.run([*command, f"--out={file}", *more], capture_output=True, text=True, timeout=120)


def test_gpu_check_runs_on_a_cpu_and_goes_on(tmp_path):
    file = tmp_path / "gpu.json"
    ran = gpu_check(file, "dirac_gan", "--only=fp32")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    first = json.loads(file.read_text())["items"]
    assert set(first) == {"fp32 dirac_gan", "fp32 dirac_gan stop.fakes=none"}
    for found in first.values():
        assert (found["losses"], found["weights"]) == (0.0, 0.0)  # the same device
    assert first["fp32 dirac_gan stop.fakes=none"]["broken"] == ["d_loss:generator", "d_loss:stop.fakes"]
    first["fp32 dirac_gan"]["said"] = "kept"
    file.write_text(json.dumps({"items": first}))
    assert gpu_check(file, "dirac_gan", "--only=fp32").returncode == 0
    assert json.loads(file.read_text())["items"] == first
