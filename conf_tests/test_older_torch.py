"""The semantics, the museum and what is private to it on the oldest supported torch, in an environment of its own.

Started by a person (``pytest -m older_torch``), since the first run downloads that torch: several GB where only a build
with CUDA is offered. ``OLDER_TORCH_PYTHON=/path/to/python`` uses an environment that exists already.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = "2.8.0"
WHAT = (
    "conf_tests/semantics",
    "conf_tests/test_museum.py",
    "conf_tests/test_explain.py",
    "conf_tests/test_private.py",
)


def environment() -> str:
    """The Python of the older environment, made in ``.cache`` when it is not there yet."""
    if given := os.environ.get("OLDER_TORCH_PYTHON"):
        return given
    folder = ROOT / ".cache" / f"torch-{OLDEST}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"torch=={OLDEST}", "numpy", "pytest"], check=True)
    return str(python)


@pytest.mark.older_torch
def test_same_on_the_oldest_supported_torch():
    python = environment()
    version = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    assert version.stdout.startswith(OLDEST), version.stdout + version.stderr
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [python, "-m", "pytest", "-o", "addopts=-q", *WHAT]  # which has no pytest-xdist
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) > 500
    print(ran.stdout[-200:])


def test_oldest_is_what_the_package_promises():
    assert f'"torch>={OLDEST.removesuffix(".0")},' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
