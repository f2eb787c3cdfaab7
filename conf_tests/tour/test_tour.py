"""``python -m stopgrad tour``: what it prints is what was measured, on any terminal, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from conf_tests.helpers import ROOT
from stopgrad.__main__ import main
from stopgrad.museum import exhibits
from stopgrad.tour.measure import line_of, source
from stopgrad.tour.screen import Screen

DIFF = files("stopgrad.tour").joinpath("gan.diff").read_text()
# Nothing of an extra may be imported: the wheel alone shows the tour.
ALONE = """
import sys
for extra in ("lightning", "hydra", "omegaconf", "tensorboard", "matplotlib", "numpy", "PIL", "sklearn"):
    sys.modules[extra] = None
from stopgrad.__main__ import main
sys.exit(main(["tour", *sys.argv[1:]]))
"""


def start(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", ALONE, *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **env}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def said(folder):
    process = start("--keep", "kept", cwd=folder)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    return out


def by_hand(mended: bool) -> tuple[list[str], list[torch.Tensor]]:
    """The distances that the script prints, and the weights that it ends with, without anything of ours."""
    names: dict = {}
    printed = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(printed):
        torch.manual_seed(0)
        exec(source(DIFF, mended=mended), names)
    return re.findall(r"distance: (\S+)", printed.getvalue()), [*names["G"].parameters(), *names["D"].parameters()]


def test_without_a_terminal_there_are_no_escapes_and_no_long_lines(said):
    assert "\033" not in said
    assert "\r" not in said
    commands = re.findall(r"^(?:\$| {6}--).*$", said, re.M)
    assert max(len(line) for line in said.splitlines() if line not in commands) <= 80


@pytest.mark.parametrize(("name", "mended"), [("before", False), ("mended", True)])
def test_the_curves_are_those_of_the_scripts(said, name, mended):
    first, last = re.findall(rf"^{name}\s+(\S+) \S+ (\S+)$", said, re.M)[0]
    distances, _ = by_hand(mended)
    assert (first, last) == (distances[0], distances[-1])


def test_the_matrix_tells_the_leak_and_then_the_cut(said):
    leaky, mended = re.findall(r"^d_loss  (.+)$", said, re.M)
    assert re.fullmatch(r"━━→ open \S+ LEAK\s+━━→ open \S+", leaky)
    assert re.fullmatch(r"‖ blocked\s+━━→ open \S+", mended)
    assert f"d_loss -> G: stopped by detach at gan.py:{line_of(source(DIFF, mended=True), '.detach()')}" in said


def test_the_norms_are_the_gradients(said):
    """Of the first three steps the largest, as torch gives it."""
    text = source(DIFF, mended=False).replace("range(1, 401)", "range(1, 4)")
    after = "    d_loss.backward()\n"
    assert after in text
    text = text.replace(
        after, f"{after}    norms.append(torch.cat([p.grad.flatten() for p in G.parameters()]).norm())\n"
    )
    names: dict = {"norms": []}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(text, names)
    assert re.findall(r"open (\S+) LEAK", said) == [f"{max(names['norms']):.2g}"]


def test_the_lines_that_cause_it_are_marked(said):
    script = source(DIFF, mended=False)
    marked = {int(n) for n in re.findall(r"^→ +(\d+) │", said, re.M)}
    assert marked == {line_of(script, "fake = "), line_of(script, "d_loss.backward()")}
    assert f"error: leaky.py:{line_of(script, 'd_loss.backward()')}: g_opt stepped G" in said
    assert "[late_zero_grad]" in said


def test_equivalent_cuts_end_with_the_same_bits_and_the_late_leak_does_not(said):
    rows = re.findall(r"^(\S.*?)  +([0-9a-f]{8})  (\S+) (\S+) (\S+) +(\w+)$", said, re.M)
    assert [(name, verdict) for name, *_, verdict in rows] == [
        ("detach (as it stands)", "reference"),
        ("no_grad", "identical"),
        ("freeze", "identical"),
        ("leak, cleared in time", "identical"),
        ("leak, cleared late", "broken"),
    ]
    assert len({row[1] for row in rows[:4]}) == 1
    assert rows[4][1] != rows[0][1]
    assert "4 of 5 end with the same weights" in said
    ends = [by_hand(mended)[0][-1] for mended in (True, False)]
    assert [rows[0][2], rows[4][2]] == ends  # the late leak is the script that the tour began with
    broken = said.split("    leak, cleared late: ")[1].split("\n\n")[0]
    assert f"broken: distance {' '.join(rows[4][2:5])}" in " ".join(broken.split())


def test_the_exhibit_was_run(said):
    assert f"A museum of {len(exhibits())} failures" in said
    assert "without the fix: RuntimeError: one of the variables needed for gradient" in said
    assert "with the fix: passes" in said


def test_what_it_keeps_can_be_run(said, folder, monkeypatch, capsys):
    """The commands that it prints, on the files that it leaves."""
    monkeypatch.chdir(folder / "kept")
    assert Path("leaky.py").read_text() == source(DIFF, mended=False)
    assert Path("gan.py").read_text() == source(DIFF, mended=True)
    assert Path("runs/ablate/gan/comparison.html").exists()
    assert main(["compare", "runs/ablate/gan"]) == 0
    assert "leak, cleared late" in capsys.readouterr().out
    command = said.split("$ python -m stopgrad ablate gan.py \\\n")[1].split("\n\n")[0].replace("\\\n", " ")
    assert command.count("--arm") == 4
    assert "The scripts and the comparison are in kept" in " ".join(said.split())


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert main(["tour", "--keep", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: --keep {tmp_path}: is there already; choose a new or an empty folder\n"


@pytest.mark.parametrize("after", ["leaky.py:", "ablate gan.py"])
def test_ctrl_c_ends_it(tmp_path, after):
    process = start(cwd=tmp_path, TMPDIR=str(tmp_path))
    assert process.stdout is not None
    while after not in (line := process.stdout.readline()):
        assert line
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith("\nstopped\n")
    assert err == ""
    assert [*tmp_path.iterdir()] == []


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8", terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # pyright: ignore[reportAttributeAccessIssue]


def everything(screen: Screen) -> None:
    screen.heading("1  A heading that has more words than a narrow terminal has room for")
    screen.say("words " * 40, "bad", indent="    ")
    screen.code(source(DIFF, mended=True), marked=[11])
    screen.diff(DIFF)
    screen.table([["arm", "verdict", "w" * 30], ["a", "‖ broken", "x × 2"]], [["bold"] * 3, ["", "bad", ""]])
    screen.curve("distance", [4.0, 2.0, 0.0, 1.0] * 20, 4.0)
    screen.progress("a long line of progress " * 9)


@pytest.fixture
def columns(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return lambda n: monkeypatch.setenv("COLUMNS", str(n))


@pytest.mark.parametrize("width", [40, 57, 80, 200])
def test_nothing_is_wider_than_the_terminal(columns, width):
    columns(width)
    terminal = Terminal()
    everything(Screen(terminal))
    assert "\033[" in terminal.text
    shown = re.sub(r"\033\[[\d;]*[mK]", "", terminal.text)
    longest = max(map(len, re.split(r"[\r\n]", shown)))
    assert min(width, 92) - 12 <= longest <= max(width - 1, 40)
    assert "verdict: ‖ broken" in shown if width == 40 else "arm  verdict " in shown  # a table too wide is a list


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_what_is_marked_is_still_seen(columns, monkeypatch, setting):
    columns(80)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    everything(Screen(terminal))
    assert not re.search(r"\033\[[\d;]*m", terminal.text)
    assert ("\r" in terminal.text) == ("NO_COLOR" in setting)  # a dumb terminal cannot write over a line
    assert re.search(r"^→ 11 │     fake = ", terminal.text, re.M)


def test_without_unicode_it_is_written_in_ascii(columns):
    columns(80)
    terminal = Terminal("ascii")
    everything(Screen(terminal))
    assert "# broken" in terminal.text
    assert re.search(r"distance  4.00 > 1.00", terminal.text)


def test_the_bars_are_the_values():
    terminal = Terminal(terminal=False)
    Screen(terminal).curve("d", [4.0, 2.0, 0.0, 3.99], 4.0)
    assert terminal.text == "d  4.00 █▅▁█ 3.99\n"


def test_temporary_files_are_gone(said):
    assert not [*Path(tempfile.gettempdir()).glob("stopgrad-tour-*")]
