"""``%%flow`` in IPython: the cell is the same with and without it, and its report comes below it."""

from __future__ import annotations

import re
import traceback

import pytest

import stopgrad
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.values import place

pytest.importorskip("IPython")

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

MODELS = """
import torch
from torch import nn
torch.manual_seed(0)
G, D = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
g_opt, d_opt = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())
bce = nn.functional.binary_cross_entropy_with_logits
"""
TRAIN = """
for step in range(6):
    fake = G(torch.randn(16, 4))
    d_opt.zero_grad()
    d_loss = bce(D(torch.randn(16, 2)), torch.ones(16, 1)) + bce(D(fake CUT), torch.zeros(16, 1))
    d_loss.backward()
    d_opt.step()
    g_loss = bce(D(G(torch.randn(16, 4))), torch.ones(16, 1))
    g_loss.backward()
    g_opt.step()
    g_opt.zero_grad()
sum(p.double().sum().item() for p in [*G.parameters(), *D.parameters()])
"""
RIGHT, LEAK = TRAIN.replace(" CUT", ".detach()"), TRAIN.replace(" CUT", "")
FAILS = "def f():\n    loss = D(G(torch.randn(16, 4))).mean()\n    loss.backward()\n    loss.backward()\nf()"


class Notebook:
    def __init__(self) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell(config=config, colors="nocolor")
        self.run("%load_ext stopgrad")
        self.run(MODELS)

    def run(self, cell):
        """(result, what was printed, what was displayed)"""
        self.shell.display_pub = published = CapturingDisplayPublisher()
        with capture_output() as seen:
            result = self.shell.run_cell(cell, store_history=True)
        return result, seen.stdout + seen.stderr, [output["data"] for output in published.outputs]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = Notebook()
    yield notebook
    stopgrad.unload_ipython_extension(notebook.shell)


def names(data) -> list[str]:
    return re.findall(r"\[(\w+)\]$", data["text/plain"], re.M)


def test_the_cell_is_what_it_is_without(notebook):
    alone, _, _ = notebook.run(RIGHT)
    notebook.run(MODELS)
    result, _, shown = notebook.run(f"%%flow{RIGHT}")
    assert result.success
    assert result.result == alone.result  # the weights, to the last digit
    assert notebook.shell.user_ns["step"] == 5
    assert notebook.shell.user_ns["fake"].shape == (16, 2)
    assert len(shown) == 1


def test_the_report_below_it(notebook):
    notebook.run("G")  # Out[3] and _ are the same network
    result, _, (report,) = notebook.run(f"%%flow --cycles 5{RIGHT}")
    said, cell = report["text/plain"], f"In[{result.execution_count}]"
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0] == "stopgrad: 6 cycles"
    assert lines[2] == "G D"
    assert re.match(r"d_loss blocked open \d", lines[3])
    assert f"d_loss -> G: stopped by detach at {cell}:5" in lines  # the line as the notebook numbers it
    assert {"d_opt steps D on d_loss", "g_opt steps G on g_loss"} <= set(lines)
    assert f"<h1>{cell}: what its gradients do</h1>" in report["text/html"]
    assert "<mark><i>▸ 5</i><b>    d_loss = bce(" in report["text/html"]
    assert "<script" not in report["text/html"]


def test_a_finding_and_its_silence(notebook):
    _, _, (report,) = notebook.run(f"%%flow{LEAK}")
    assert names(report) == ["late_zero_grad", "gradient_through"]
    _, _, (report,) = notebook.run(f"%%flow --silence late_zero_grad{LEAK}")
    assert names(report) == ["gradient_through"]


def test_functions_of_other_cells_and_names_of_this_one(notebook):
    notebook.run("def step(critic_loss):\n    critic_loss.backward()")
    _, _, (report,) = notebook.run("%%flow\nmy_loss = D(torch.randn(3, 2)).mean()\nstep(my_loss)")
    assert re.search(r"^my_loss  independent  open", report["text/plain"], re.M)


def test_an_exception_is_the_cell_s_own(notebook):
    alone, printed, _ = notebook.run(f"# the first line\n{FAILS}")
    frames = [(f.name, f.lineno) for f in traceback.extract_tb(alone.error_in_exec.__traceback__)]
    result, watched, (report,) = notebook.run(f"%%flow\n{FAILS}")
    error = result.error_in_exec
    assert not result.success
    assert isinstance(error, RuntimeError)
    assert [(f.name, f.lineno) for f in traceback.extract_tb(error.__traceback__)] == frames
    cell = re.compile(r"In\[\d+\]|ipython-input-\d+-\w+")
    assert cell.sub("", watched) == cell.sub("", printed)
    assert f"error: In[{result.execution_count}]:5: " in report["text/plain"]
    assert notebook.shell.custom_exceptions == ()
    assert not notebook.run("1")[2]


def test_what_runs_a_cell_is_not_the_script(notebook):
    notebook.run("from stopgrad.watch.names import user_frames")
    result, _, _ = notebook.run("list(map(lambda frame: frame.f_code.co_name, user_frames()))")
    assert result.result == ["<module>"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--cycles x", "argument --cycles: invalid int value: 'x'"),
        ("--nothing", "unrecognized arguments: --nothing"),
        ("--silence late_zero", "--silence: no finding is named 'late_zero'; did you mean late_zero_grad?"),
        ("--html no/where.html", "--html no/where.html: the folder cannot be written"),
        ("--html 'a", "No closing quotation"),
    ],
)
def test_what_is_refused(notebook, options, said):
    result, printed, shown = notebook.run(f"%%flow {options}\nprint('ran')")
    assert not result.success
    assert printed == f"UsageError: %%flow: {said}\n"
    assert shown == []


def test_files_are_written(notebook, tmp_path):
    notebook.run(f"%%flow --html page.html --json report.json{LEAK}")
    assert "late_zero_grad" in (tmp_path / "page.html").read_text()
    assert "late_zero_grad" in (tmp_path / "report.json").read_text()


def test_over_another_magic_and_by_name(notebook):
    _, _, (report,) = notebook.run("%%flow\n%%time\nloss = D(torch.randn(3, 2)).mean()\nloss.backward()")
    assert "loss  independent  open" in report["text/plain"]
    result, _, (report,) = notebook.run("get_ipython().run_cell_magic('flow', '', 'loss = 1 / 0')")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert report["text/plain"].startswith("stopgrad: nothing to report")


def test_a_terminal_lets_the_cell_go_on_to_an_empty_line(notebook):
    complete = notebook.shell.input_transformer_manager.check_complete
    assert complete("%%flow\n")[0] == complete("%%flow\nloss.backward()")[0] == "incomplete"


def test_unloaded_it_is_gone(notebook):
    notebook.run("def f():\n    pass")
    file = notebook.shell.user_ns["f"].__code__.co_filename
    assert re.fullmatch(r"In\[\d+\]:2", place(file, 2))
    notebook.run("%unload_ext stopgrad")
    assert "In[" not in place(file, 2)
    result, printed, _ = notebook.run("%%flow\n1")
    assert not result.success
    assert "`%%flow` not found" in printed


def test_a_matrix_shows_itself_as_a_table(notebook):
    cells = {("a_loss", "net"): Cell("open", 0.5, path=("mean",)), ("<b>", "net"): Cell("zero", note="why")}
    shown = notebook.shell.display_formatter.format(FlowMatrix(["net"], cells))[0]["text/html"]
    assert '<tr><th scope="row">a_loss</th><td class="open" title="mean">open 5.0e-01</td></tr>' in shown
    assert '<th scope="row">&lt;b&gt;</th><td class="zero" title="why">zero</td>' in shown
    assert "<li>&lt;b&gt; -&gt; net: zero; why</li>" in shown


def test_a_large_matrix_is_folded(notebook):
    losses, parts = [f"loss_{i}" for i in range(256)], [f"part_{i}" for i in range(100)]
    matrix = FlowMatrix(parts, {(loss, part): Cell("open", 1.0) for loss in losses for part in parts}, losses)
    assert matrix._repr_html_().count("<td class=") == 1


def test_a_stop_of_the_cell_is_switched(notebook):
    cell = "\nx = G(torch.randn(16, 4)).detach()\nloss = D(x).mean()\nloss.backward()\nx.requires_grad"
    result, _, (report,) = notebook.run(f"%%flow{cell}")
    assert result.result is False
    assert re.search(r"^loss  blocked +open", report["text/plain"], re.M)
    result, _, (report,) = notebook.run(f"%%flow --stop 2=none{cell}")
    assert result.result is True
    assert re.search(r"^loss  open \S+ +open", report["text/plain"], re.M)
    result, _, _ = notebook.run(cell)  # and no longer
    assert result.result is False


def test_a_line_without_a_stop_is_refused_before_the_cell_runs(notebook):
    result, printed, shown = notebook.run("%%flow --stop 3=none\ny = G(torch.randn(16, 4)).detach()\nran = True")
    assert not result.success
    assert "%%flow: --stop 3=none: line 3 has no stop; the nearest is 2 (detach of G(torch.randn(16, 4)))" in printed
    assert "ran" not in notebook.shell.user_ns
    assert shown == []
