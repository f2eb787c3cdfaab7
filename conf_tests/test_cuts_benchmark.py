"""What the page on costs says can be counted again: nodes and saved bytes are exact, times only roughly."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "cuts.py"


@pytest.fixture(scope="module")
def cuts():
    spec = importlib.util.spec_from_file_location("cuts", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def counted(cuts):
    """Counts alone: no timed step."""
    return cuts.measure(0)


def test_saved_bytes_of_one_layer_by_hand(cuts):
    """tanh saves its output, the head's backward its input: the same 4 x 3 floats, counted once."""
    model, head, x = torch.nn.Tanh(), torch.nn.Linear(3, 1, bias=False), torch.ones(4, 3, requires_grad=True)
    live = cuts.cost(model, head, cuts.WAYS["live"], x)
    assert live == {"nodes": 2, "saved_bytes": 4 * 3 * 4 + 4 * 4}  # tanh's output, and square()'s input
    none = cuts.cost(model, head, cuts.WAYS["`no_grad`"], x)
    assert none == {"nodes": 0, "saved_bytes": 4 * 3 * 4 + 4 * 4}


def test_cut_after_the_fact_saves_no_peak_and_no_node(counted):
    for model, rows in counted.items():
        after = {rows[way]["nodes"] for way in ("live", "`detach()`", "`detach_()`", "`.data`")}
        assert after == {rows["live"]["nodes"]}, model
        assert rows["`detach()`"]["saved_bytes"] > 0.97 * rows["live"]["saved_bytes"]


def test_never_built_is_never_saved(counted):
    for rows in counted.values():
        for way in ("`no_grad`", "`inference_mode`, then `clone()`", "`requires_grad_(False)`"):
            assert rows[way]["nodes"] == 0
            assert rows[way]["saved_bytes"] < 0.03 * rows["live"]["saved_bytes"]


def test_page_carries_these_counts(counted, cuts):
    page = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    made_on = re.search(r"torch (\d+\.\d+)", page)
    assert made_on
    if not torch.__version__.startswith(made_on[1]):
        pytest.skip(f"the page was made on torch {made_on[1]}")
    rows = re.findall(r"^\| (.*?) \|((?: \d+ / [\d.]+ / [\d.]+ \|){3})$", page, re.M)
    assert [way for way, _ in rows] == list(cuts.WAYS)
    for way, cells in rows:
        figures = re.findall(r"[\d.]+", cells)
        for model, nodes, saved in zip(cuts.MODELS, figures[0::3], figures[1::3], strict=True):
            cost = counted[model][way]
            assert (nodes, saved) == (str(cost["nodes"]), f"{cost['saved_bytes'] / 1e6:.2f}"), (way, model)


def test_command(cuts, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cuts -->\n<!-- /cuts -->\nafter\n")

    def printed(*arguments):
        monkeypatch.setattr(sys, "argv", ["cuts.py", *arguments])
        cuts.main()
        return capsys.readouterr().out

    made = printed("--repeats", "1", "--write", str(page))
    assert page.read_text() == f"before\n<!-- cuts -->\n{made.rstrip()}\n<!-- /cuts -->\nafter\n"
    assert json.loads(printed("--repeats", "1", "--json"))["models"]["MLP"]["`no_grad`"]["ratio"] == 1
    with pytest.raises(SystemExit, match="no line <!-- cuts -->"):
        cuts.write(SCRIPT.parent.parent / "LICENSE", "")
    with pytest.raises(SystemExit, match="2"):
        printed("--repeats", "0")
    assert "--repeats 0: at least 1" in capsys.readouterr().err
