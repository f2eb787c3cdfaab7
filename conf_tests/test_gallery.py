"""docs/museum/gallery.md shows every exhibit as it runs today, broken and mended."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from conf_tests.helpers import ROOT
from stopgrad.museum import exhibits

MUSEUM = ROOT / "docs" / "museum"
PAGE = (MUSEUM / "gallery.md").read_text(encoding="utf-8")
SAMPLE = ["dead_critic", "late_zero_grad", "never_eval", "no_graph"]
REDO = """
import json, sys
sys.path.insert(0, "docs")
import gallery
for name in sys.argv[1:]:
    pair = gallery.both(name)
    exhibit = gallery.exhibits()[name]
    print(json.dumps([gallery.section(exhibit, *pair), gallery.pictures(exhibit, *pair)]))
"""


def section(name: str) -> str:
    (found,) = re.findall(rf"^### \[[^\n]+/{name}\.md\)\n.*?(?=^##|\Z)", PAGE, re.M | re.S)
    return found


def test_each_exhibit_stands_there_once():
    assert [re.search(r"/(\w+)\.md", line)[1] for line in re.findall(r"^### .*", PAGE, re.M)] == [
        name for silent in (True, False) for name, exhibit in exhibits().items() if exhibit.silent is silent
    ]


@pytest.mark.parametrize("name", exhibits())
def test_each_says_what_it_is_known_by(name):
    """A silent one by what `run` finds, but for the one that takes several processes; another by torch's message."""
    exhibit, text = exhibits()[name], section(name)
    if exhibit.silent:
        assert f"[{exhibit.finding}]" in text or name == "ranks_drift"
    else:
        assert exhibit.message in text


def test_pictures_are_those_of_the_page():
    shown = re.findall(r"!\[(\w+): .+?\]\(pictures/([\w-]+\.svg)\)", PAGE)
    assert {file for _, file in shown} == {file.name for file in (MUSEUM / "pictures").iterdir()}
    assert all(file.endswith(f"-{state}.svg") for state, file in shown)
    assert len(shown) > 40
    assert max(file.stat().st_size for file in (MUSEUM / "pictures").iterdir()) < 15_000


def test_they_are_fresh():
    """Of a sample: one with both pictures, one more, one whose flow is not at fault, one that raises."""
    ran = subprocess.run(
        [sys.executable, "-c", REDO, *SAMPLE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    for name, line in zip(SAMPLE, ran.stdout.splitlines(), strict=True):
        text, pictures = json.loads(line)
        assert text.strip() == section(name).strip(), "run: python docs/gallery.py"
        assert {file: (MUSEUM / "pictures" / file).read_text() for file in pictures} == pictures
        assert len(pictures) == {"never_eval": 0, "no_graph": 1}.get(name, 2)
