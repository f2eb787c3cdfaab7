"""Each silent exhibit of the museum is a training that ``run`` finds fault with, and finds none once it is mended."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from conf_tests.helpers import ROOT
from conf_tests.watch.processes import findings, grave
from stopgrad.museum import Exhibit, exhibits

RANKS = "ranks_drift"  # its page is one process; run sees it between ranks: test_run.py
SILENT = [exhibit for exhibit in exhibits().values() if exhibit.silent and exhibit.name != RANKS]
NOTED = {"unused_layers"}  # worth knowing, and no fault
HEALTHY = {"gradient_through": "gradient_through"}  # what is noted once it is mended

each = pytest.mark.parametrize("exhibit", SILENT, ids=lambda e: e.name)


def write(exhibit: Exhibit, folder: Path, *, fixed: bool) -> Path:
    """The page's script, which starts as the museum starts it: from the seed 0."""
    if exhibit.needs and importlib.util.find_spec(exhibit.needs) is None:
        pytest.skip(f"needs {exhibit.needs}")
    script = folder / f"{exhibit.name}.py"
    script.write_text(f"import torch; torch.manual_seed(0); {exhibit.script(fixed=fixed)}")
    return script


@each
def test_the_broken_script_has_its_finding(exhibit, tmp_path):
    script = write(exhibit, tmp_path, fixed=False)
    ran, found = findings(script, tmp_path / "run")
    assert "AssertionError" in ran.stderr  # the script's own check
    mine = [finding for finding in found if finding["name"] == exhibit.finding]
    assert mine, found
    lines = len(script.read_text().splitlines())
    for finding in mine:
        assert (finding["severity"] == "note") == (exhibit.name in NOTED)
        if finding["file"]:
            assert Path(finding["file"]) == script
            assert 1 <= finding["line"] <= lines


@each
def test_the_mended_script_has_none(exhibit, tmp_path):
    ran, found = findings(write(exhibit, tmp_path, fixed=True), tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert grave(found) == []
    if exhibit.name in HEALTHY:
        assert HEALTHY[exhibit.name] in [finding["name"] for finding in found]


def test_each_finding_is_an_exhibit():
    """``--silence`` and the reader look it up there. A name is a constant of several words in a rule's source."""
    sources = (ROOT / "stopgrad" / "watch" / "rules").glob("*.py")
    words = {n.value for f in sources for n in ast.walk(ast.parse(f.read_text())) if isinstance(n, ast.Constant)}
    names = {word for word in words if isinstance(word, str) and re.fullmatch("[a-z]+(_[a-z]+)+", word)}
    assert names - {"no_grad", "inference_mode", "detach_", "no_derivative", "requires_grad"} <= {*exhibits()}
    assert len(names) > 30


def test_a_finding_of_another_name_is_an_exhibit_too():
    assert {exhibit.finding for exhibit in SILENT} <= {exhibit.name for exhibit in SILENT}
