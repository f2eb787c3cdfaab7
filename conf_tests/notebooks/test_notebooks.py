"""The notebooks run from top to bottom, and what is stored in them is what they show now."""

from __future__ import annotations

import ast
import html
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conf_tests.helpers import ROOT

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from conf_tests.notebooks.execute import FOLDER, INSTALL, PICTURE, TIMED, executed, read, stored, tags

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])|(?<=open )\S+(?=<)")
DATED = re.compile(r"torch [\w.+]+ · \d{4}-\d\d-\d\d \d\d:\d\d")  # in the head of a report


def texts(cell: Any) -> str:
    """All that a code cell shows as text; markup without its drawing."""
    shown = []
    for output in cell["outputs"]:
        assert output["output_type"] != "error"
        data = output.get("data", {})
        for kind in ("text/html", "text/markdown", "text/plain"):
            shown.append(html.unescape(re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", data.get(kind, ""), flags=re.S)))
        shown.append(output.get("text", ""))
    return DATED.sub("", "".join(shown))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def kept(name):
    return read(name)


@pytest.fixture(scope="module")
def now(kept, tmp_path_factory):
    return stored(kept, executed(kept, tmp_path_factory.mktemp("notebook"))[0])


def pairs(kept: Any, now: Any) -> list[tuple[Any, Any]]:
    cells = [*zip(kept.cells, now.cells, strict=True)]
    return [(a, b) for a, b in cells if a["cell_type"] == "code"]


def test_there_are_three():
    assert NAMES == ["audit_yours", "comparison", "first_cut"]


def test_it_shows_what_is_stored(kept, now):
    """In the same words; ``python -m conf_tests.notebooks.execute`` stores them anew."""
    for was, is_now in pairs(kept, now):
        assert was["execution_count"] == is_now["execution_count"]
        assert [*map(kinds, was["outputs"])] == [*map(kinds, is_now["outputs"])] or PICTURE in tags(was)
        if PICTURE not in tags(was):
            assert NUMBER.sub("#", texts(is_now)) == NUMBER.sub("#", texts(was))


def kinds(output: Any) -> list[str]:
    return sorted(output.get("data", [output["output_type"]]))


def test_its_figures_are_those_that_are_stored(kept, now):
    """To one part in fifty, by the torch that made them."""
    if kept["metadata"]["torch"] != torch.__version__.partition("+")[0]:
        pytest.skip(f"they were made by torch {kept['metadata']['torch']}")
    for was, is_now in pairs(kept, now):
        if PICTURE not in tags(was):
            before, after = (NUMBER.findall(texts(cell)) for cell in (was, is_now))
            assert [*map(float, after)] == pytest.approx([*map(float, before)], rel=0.02, abs=0.02)


def test_the_picture_is_there(kept, now):
    for was, is_now in pairs(kept, now):
        for cell in (was, is_now) if PICTURE in tags(was) else ():
            assert [output for output in cell["outputs"] if "image/png" in output.get("data", {})]


def test_what_shows_times_stores_nothing(kept):
    assert all(not cell["outputs"] for cell in kept.cells if TIMED in tags(cell))


def test_it_is_installed_by_one_line_which_the_tests_leave_out(kept, now):
    first, *others = (cell for cell in kept.cells if cell["cell_type"] == "code")
    assert tags(first) == [INSTALL]
    assert re.fullmatch(r'# Once.*\n%pip install --quiet "stopgrad\[compare\]"', first["source"])
    assert first["execution_count"] is None
    assert not any("pip install" in cell["source"] for cell in others)


def test_it_needs_what_that_line_installs(kept):
    """torch, and the extra ``compare``."""
    allowed = {"torch", "stopgrad", "matplotlib", "pathlib", "subprocess", "sys"}
    for cell in kept.cells:
        if cell["cell_type"] == "code" and not cell["source"].startswith(("%%writefile", "# Once")):
            source = re.sub(r"^%.*$", "", cell["source"], flags=re.M)
            for node in ast.walk(ast.parse(source)):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert {module.partition(".")[0] for module in modules} <= allowed


def test_its_links_lead_somewhere(kept):
    for cell in kept.cells:
        if cell["cell_type"] == "markdown":
            links = re.findall(r"\]\((?!http)([^)#]+)", cell["source"])
            links += [Path("..") / path for path in re.findall(r"`(docs/\S+\.md)`", cell["source"])]
            assert all((FOLDER / link).exists() for link in links)


def shown_by(name: str) -> str:
    return "\n".join(texts(cell) for cell in read(name).cells if cell["cell_type"] == "code")


def test_the_first_cut_tells_the_leak_the_fix_and_the_equal_bits():
    text = shown_by("first_cut")
    assert re.search(r"g_opt stepped G on d_loss's gradient as well, in 30 of 30 steps", text)
    leaky, mended = re.findall(r'<th scope="row">d_loss</th><td class="(\w+)"', text.split("late_zero_grad", 1)[1])[-2:]
    assert (leaky, mended) == ("open", "blocked")
    assert [*re.findall(r"same bits: (\w+)", text)] == [*["True"] * 5, "False"]
    distances = [float(found) for found in re.findall(r"distance (\S+)", text)]
    assert math.isclose(distances[0], distances[4])
    assert distances[5] > 5 * distances[0]


def test_your_model_and_the_comparison_say_what_the_text_around_them_says():
    text = shown_by("audit_yours")
    assert "('blocked', ['detach at In[1]:" in text
    assert "GradientStarved: probe_loss does not reach encoder" in text
    assert "[unstepped_parameter]" in text or "no optimiser holds it" in text
    text = shown_by("comparison")
    assert re.search(r"^no_grad\s+identical", text, re.M)
    assert re.search(r"^none\s+different_training", text, re.M)
    assert "no_grad equal to the end" in text


def test_they_are_linked():
    for page in ("README.md", "docs/notebooks.md"):
        text = (ROOT / page).read_text()
        assert "notebooks" in text
    assert all(f"{name}.ipynb" in (ROOT / "docs/notebooks.md").read_text() for name in NAMES)
