"""docs/speed.md says what docs/measured/speed.json holds, by bars that tell a miss."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from conf_tests.helpers import ROOT


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_what_was_measured(speed):
    page = speed.PAGE.read_text()
    assert speed.written(page, speed.measured()) == page, "run: python benchmarks/speed.py --page"


def test_every_bar_and_every_recipe_was_measured(speed):
    parts = speed.measured()
    assert {row.part for row in speed.ROWS} <= parts.keys()
    assert parts["step"]["found"].keys() == {file.stem for file in (ROOT / "benchmarks" / "plain").glob("*.py")}
    for part in parts.values():
        assert part["machine"].keys() == speed.machine().keys()


def test_a_miss_is_told(speed):
    def line(median: float, row: int) -> str:
        part = {"command": "c", "found": {"recipe over plain": dict(median=median, min=1.0, max=2.0)}}
        parts = {"gan": part, "actor_critic": {"command": "c", "found": {"times_sooner": part["found"]["recipe over plain"]}}}
        row_of = [each for each in speed.ROWS if each.work == works[row]]
        before, speed.ROWS = speed.ROWS, row_of
        try:
            return list(speed.bars(parts))[-1]
        finally:
            speed.ROWS = before

    works = ["GAN recipe over the plain loop, WGAN-GP", "PPO to 475 on CartPole, times sooner than SB3's zoo"]
    assert "| at most 1.04 | 1.04 | 1 to 2 | yes |" in line(1.04, 0)
    assert "| at most 1.04 | 1.05 | 1 to 2 | **no** |" in line(1.05, 0)
    assert "| at least 6 | 6 | 1 to 2 | yes |" in line(6.0, 1)
    assert "| at least 6 | 5.9 | 1 to 2 | **no** |" in line(5.9, 1)


def test_a_page_without_its_markers_and_an_unknown_part_are_refused(speed):
    with pytest.raises(ValueError, match=r"speed.md: lacks <!-- bars: made by"):
        speed.written("# Speed\n", {})
    ran = subprocess.run([sys.executable, ROOT / "benchmarks" / "speed.py", "gna"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("speed.py: error: part=gna: choose one of gan, gan_simple,")
