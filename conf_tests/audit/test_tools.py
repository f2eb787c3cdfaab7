"""The pytest plugin, the pictures and the command."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stopgrad import Boundary, audit
from stopgrad.__main__ import main
from stopgrad.flow.pictures import COLOURS, html_page, matrix_svg

pytest_plugins = ["pytester"]

HEAD = """
import pytest, torch
from torch import nn
from stopgrad import assert_flow
torch.manual_seed(0)
net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
x = torch.ones(3, 2)
def loss():
    return net["head"](net["backbone"](x).detach()).mean()
"""


def _run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + body)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider")


def test_assert_flow_failures_show_the_callers_line_and_the_reason(pytester: pytest.Pytester) -> None:
    result = _run(pytester, "def test_it():\n    assert_flow(loss, net, reaches='backbone')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_flow(loss, net, reaches='backbone')",
            "E*GradientStarved: loss does not reach backbone, which the contract calls open:*",
            "E*stopped by detach at test_*.py:8",
        ]
    )
    assert "stopgrad/flow.py" not in result.stdout.str()


def test_the_fixture_audits_and_shows_the_matrix_on_failure(pytester: pytest.Pytester) -> None:
    result = _run(
        pytester,
        """
def test_right(flow_audit):
    a = flow_audit(net)
    a.loss("loss", loss())
    assert a.matrix()["loss", "backbone"].state == "blocked"

def test_wrong(flow_audit):
    flow_audit(net).loss("loss", loss())
    assert False

def test_two_in_a_row(flow_audit):
    flow_audit(net).loss("one", loss())
    flow_audit(net).loss("two", loss())
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*flow matrix*", "*loss*blocked*open*"])


def test_the_marker_checks_a_contract_over_all_its_losses(pytester: pytest.Pytester) -> None:
    result = _run(
        pytester,
        """
@pytest.mark.flow_contract({"loss": {"head": "open", "backbone": "blocked"}})
def test_kept(flow_audit):
    flow_audit(net).loss("loss", loss())

@pytest.mark.flow_contract({"loss": {"head": "open", "backbone": "open"}})
def test_broken(flow_audit):
    flow_audit(net).loss("loss", loss())

@pytest.mark.flow_contract({"loss": {"head": "open"}, "other": {"head": "open"}})
def test_a_loss_is_missing(flow_audit):
    flow_audit(net).loss("loss", loss())

@pytest.mark.flow_contract({"loss": {"head": "opn"}})
def test_a_state_is_wrong(flow_audit):
    flow_audit(net).loss("loss", loss())

@pytest.mark.flow_contract({"loss": {"head": "open"}})
def test_without_the_fixture():
    pass
""",
    )
    result.assert_outcomes(passed=1, failed=4)
    said = result.stdout.str()
    assert "entries are hidden" not in said  # the message is the failure
    assert "stopgrad/" not in said  # and none of our source stands before it
    assert "During handling" not in said
    result.stdout.fnmatch_lines(
        [
            "*_ test_broken _*",
            "GradientStarved: loss does not reach backbone*",
            "ValueError: the contract names loss 'other'; there is loss",
            "*ValueError: contract loss -> head: 'opn' is none of*",
            "*needs one contract, and a test that uses flow_audit*",
        ]
    )


def test_the_marker_knows_submodules_and_parameters(pytester: pytest.Pytester) -> None:
    result = _run(
        pytester,
        """
@pytest.mark.flow_contract({"loss": {"head.weight": "open", "backbone.*": "blocked"}})
def test_kept(flow_audit):
    flow_audit(net).loss("loss", loss())

def test_parts(flow_audit):
    a = flow_audit(net, parts=["head.wieght"])
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "stopgrad/" not in result.stdout.str()
    result.stdout.fnmatch_lines(["E*nothing with parameters is called 'head.wieght'; did you mean head.weight?"])


def test_wrong_names_in_a_test_are_one_line(pytester: pytest.Pytester) -> None:
    result = _run(
        pytester,
        """
def test_check(flow_audit):
    a = flow_audit(net)
    a.loss("loss", loss())
    a.check({"los": {"head": "open"}})

def test_part(flow_audit):
    a = flow_audit(net)
    a.loss("loss", loss())
    a.check({"loss": {"tail": "open"}})

def test_state(flow_audit):
    flow_audit(net).check({"loss": {"head": "opn"}})

def test_vector(flow_audit):
    flow_audit(net).loss("loss", x)
""",
    )
    result.assert_outcomes(failed=4)
    said = result.stdout.str()
    assert "stopgrad/" not in said
    assert len([line for line in said.splitlines() if line.startswith(">")]) == 4  # the test's own lines
    result.stdout.fnmatch_lines(["E*names loss 'los'; there is loss; did you mean loss?", "E*names part 'tail'*"])


# ---- pictures


def _gan() -> audit:
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    d = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(8, 4)
    with audit({"generator": g, "discriminator": d}, draw=True) as a:
        fakes = Boundary("fakes", "detach")(g, x)
        a.loss("d_loss", F.softplus(d(fakes)).mean() + F.softplus(-d(x)).mean())
        a.loss("g_loss", F.softplus(-d(g(x))).mean())
    return a


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_matrix_svg_shows_every_cell_in_the_colour_of_its_state() -> None:
    matrix = _gan().matrix()
    svg = matrix_svg(matrix)
    fills = [e.get("fill") for e in ET.fromstring(svg).iter() if e.tag.endswith("rect")][1:]
    assert fills == [COLOURS[cell.state][0] for cell in matrix.values()]
    texts = _texts(svg)
    assert {"d_loss", "g_loss", "generator", "discriminator", "stop.fakes"} <= set(texts)
    assert any("detach at" in text and "stop.fakes" in text for text in texts)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")  # nothing to load
    assert html_page("a < b", svg).count("<svg") == 1


# ---- the command

MODEL = """
import torch
from torch import nn

def step():
    torch.manual_seed(0)
    net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    yield net
    features = net["backbone"](torch.ones(3, 2)).detach()
    yield "loss", net["head"](features).mean()

def no_generator():
    return 3

def strange():
    yield nn.Linear(1, 1)
    yield 3
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_the_command_prints_the_matrix(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stopgrad", "audit", "model.py:step"], cwd=model.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    header, row, reason = done.stdout.splitlines()
    assert header.split() == ["backbone", "head"]
    assert row.split()[:3] == ["loss", "blocked", "open"]
    assert reason == "  loss -> backbone: stopped by detach at model.py:9"


def test_the_command_writes_a_page_and_checks_a_contract(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, contract = model.parent / "flow.html", model.parent / "flow.yaml"
    contract.write_text("loss: {backbone: open}")
    arguments = ["audit", f"{model}:step", "--html", str(page), "--contract", str(contract)]
    assert main(arguments) == 1
    assert "loss does not reach backbone" in capsys.readouterr().err
    assert page.read_text().count("<svg") == 2
    contract.write_text("loss: {backbone: blocked, head.weight: open}")
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{}:stop", "has no function 'stop'"),
        ("{}", "write FILE:FUNCTION"),
        ("absent.py:step", "no such file"),
        ("{}:no_generator", "expected a generator"),
        ("{}:strange", r"yielded a int; yield (name, loss)"),
    ],
)
def test_bad_targets_are_one_clear_line(
    target: str, message: str, model: Path, capsys: pytest.CaptureFixture[str], request: Any
) -> None:
    assert main(["audit", target.format(model)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
