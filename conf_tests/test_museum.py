"""Each exhibit fails as its page says, and its fix mends it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys

import pytest

from stopgrad import museum
from stopgrad.__main__ import main

ALL = museum.exhibits()


def test_there_are_enough():
    assert len(ALL) >= 25
    assert sum(e.silent for e in ALL.values()) >= 12


@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")  # Lightning 2.6 against torch 2.13
@pytest.mark.parametrize("name", ALL)
def test_broken_fails_and_fixed_passes(name):
    exhibit = ALL[name]
    if exhibit.needs and importlib.util.find_spec(exhibit.needs) is None:
        pytest.skip(f"{name} needs {exhibit.needs}")
    broken = exhibit.run(fixed=False)
    assert exhibit.met_by(broken), f"the page promises {exhibit.message!r}, the script said {broken!r}"
    assert exhibit.run(fixed=True) is None


@pytest.mark.parametrize("name", ALL)
def test_page_is_whole(name):
    exhibit = ALL[name]
    assert exhibit.summary
    assert exhibit.script(fixed=False) != exhibit.script(fixed=True)
    assert len(exhibit.script(fixed=True).splitlines()) <= 40
    assert exhibit.threads, "people met it somewhere"
    assert all(re.match(r"https://\S+( .+)?$", thread) for thread in exhibit.threads)
    if exhibit.silent:
        assert exhibit.message.startswith("AssertionError"), "a message of torch's needs a pattern; silence is asserted"


@pytest.mark.parametrize("name", [n for n, e in ALL.items() if not e.silent])
def test_its_own_message_leads_back_to_it(name):
    from stopgrad.museum.explain import find

    broken = ALL[name].run(fixed=False)
    assert name in [e.name for e in find(f"{type(broken).__name__}: {broken}")]


def test_a_wrong_promise_is_noticed():
    exhibit = ALL["no_graph"]
    assert not exhibit.met_by(None)
    assert not exhibit.met_by(ValueError("element 0 of tensors does not require grad and does not have a grad_fn"))
    assert not exhibit.met_by(RuntimeError("element 1 of tensors does not require grad and does not have a grad_fn"))


def test_a_page_without_a_heading_is_refused(tmp_path):
    page = tmp_path / "half.md"
    page.write_text("# Half\n\nA page.\n\n## Script\n\n```diff\n  x\n```\n")
    with pytest.raises(
        ValueError, match=r"half.md: unknown headings \[\], missing headings \['Fix', 'Message', 'Why'\]"
    ):
        museum.read(page)


def test_traceback_names_the_page():
    import traceback

    error = ALL["no_graph"].run(fixed=False)
    assert error is not None
    frame = next(f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith("no_graph.md"))
    assert frame.line == "loss.backward()"


def test_printed_script_runs_alone(tmp_path):
    script = tmp_path / "fixed.py"
    script.write_text(ALL["dead_critic"].script(fixed=True))
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)


@pytest.mark.parametrize("fixed", [False, True])
def test_command_runs_one(capsys, fixed):
    assert main(["museum", "detached_penalty"]) == 0
    out = capsys.readouterr().out
    assert "with the fix     passes" in out
    assert re.search(r"without the fix  AssertionError: the penalty is \d\.\d\d and a constant", out)


def test_command_lists_all(capsys):
    assert main(["museum"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and e.title in out for name, e in ALL.items())


def test_command_prints_a_script(capsys):
    assert main(["museum", "starved_generator", "--script", "fixed"]) == 0
    assert capsys.readouterr().out == ALL["starved_generator"].script(fixed=True)


@pytest.mark.parametrize("more", [[], ["--script", "broken"]])
def test_command_knows_no_such_exhibit(capsys, more):
    assert main(["museum", "dead_crtic", *more]) == 2
    assert capsys.readouterr().err == (
        "error: no exhibit is named 'dead_crtic'; did you mean dead_critic?; python -m stopgrad museum lists them\n"
    )


def test_reader_that_leaves_early():
    """`museum | head -1` is no error."""
    command = [sys.executable, "-u", "-m", "stopgrad", "museum"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stderr
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 0


def test_what_an_exhibit_needs_is_said(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["museum", "numpy_grad"]) == 1
    assert capsys.readouterr().out.endswith("not run: it needs numpy (pip install numpy)\n")


def test_scripts_import_what_they_name():
    """Every import is torch, the standard library, or what the page says it needs."""
    for exhibit in ALL.values():
        for fixed in (False, True):
            script = exhibit.script(fixed=fixed)
            imported = set(re.findall(r"^(?:import|from) (\w+)", script, re.M))
            assert imported <= {"torch", exhibit.needs} | sys.stdlib_module_names, exhibit.name
            assert exhibit.needs == "numpy" or ".numpy()" not in script, exhibit.name


def test_command_fails_when_the_page_is_wrong(capsys):
    """A version of torch that says something else is noticed by whoever runs the exhibit."""
    exhibit = ALL["no_graph"]
    assert museum.show(exhibit) == 0
    said_otherwise = dataclasses.replace(exhibit, sections=exhibit.sections | {"Message": "```\nValueError: no\n```"})
    assert museum.show(said_otherwise) == 1
    not_mended = exhibit.sections["Script"].replace("\n+ ", "\n- ")
    assert museum.show(dataclasses.replace(exhibit, sections=exhibit.sections | {"Script": not_mended})) == 1
    capsys.readouterr()
