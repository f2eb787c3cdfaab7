"""docs/speed.md says what docs/speed.json holds, by bars that tell a miss."""

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


def test_a_miss_is_told(speed, monkeypatch):
    def last_line(asked: str, bar: float, median: float) -> str:
        monkeypatch.setattr(speed, "ROWS", [speed.Row("work", "gan", speed.at("a", "b"), asked, bar)])
        found = {"a": {"b": {"median": median, "min": 1.0, "max": 2.0}}}
        return list(speed.bars({"gan": {"command": "c", "found": found}}))[-1]

    assert last_line("≤", 1.04, 1.04) == "| work | ≤ 1.04 | 1.04 | 1 to 2 | yes | `c` |"
    assert last_line("≤", 1.04, 1.05) == "| work | ≤ 1.04 | 1.05 | 1 to 2 | **no** | `c` |"
    assert last_line("≥", 6, 6.0) == "| work | ≥ 6 | 6 | 1 to 2 | yes | `c` |"
    assert last_line("≥", 6, 5.9) == "| work | ≥ 6 | 5.9 | 1 to 2 | **no** | `c` |"


def test_a_page_without_its_markers_and_an_unknown_part_are_refused(speed):
    with pytest.raises(ValueError, match=r"speed.md: lacks <!-- bars: made by"):
        speed.written("# Speed\n", {})
    ran = subprocess.run([sys.executable, ROOT / "benchmarks" / "speed.py", "gna"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("speed.py: error: part=gna: choose one of gan, gan_simple,")
