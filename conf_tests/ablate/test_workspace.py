"""A working folder of an arm's own: what is there is found, what is written stays, the source is as it was."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from conf_tests.watch.processes import python

BEGIN = """\
import os, sys
from pathlib import Path
from stopgrad.ablate.workspace import Workspace

work = Workspace(Path(sys.argv[1]) / "arm" / "work", Path(sys.argv[1]) / "source", allow_writes={allow})
work.fill()
with work.guarded():
    exec(compile(Path(sys.argv[2]).read_text(), "body", "exec"))
"""


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "source"
    (source / "data" / "deep").mkdir(parents=True)
    (source / "data" / "deep" / "x.txt").write_text("an input")
    (source / "data" / "y.txt").write_text("another")
    (source / "log.txt").write_text("before\n")
    (source / "model.pt").write_text("a checkpoint")
    return source


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def run(tmp_path, body, allow=False):
    (tmp_path / "body.py").write_text(body)
    (tmp_path / "script.py").write_text(BEGIN.format(allow=allow))
    return python("script.py", tmp_path, tmp_path / "body.py", cwd=tmp_path)


WRITES = {
    "a new file": ("open('new.txt', 'w').write('1')", "new.txt"),
    "a new folder": ("os.makedirs('runs/a/b'); open('runs/a/b/new.txt', 'w').write('1')", "runs/a/b/new.txt"),
    "a file in a folder that is there": ("open('data/deep/new.txt', 'w').write('1')", "data/deep/new.txt"),
    "over a file": ("open('data/deep/x.txt', 'w').write('1')", "data/deep/x.txt"),
    "to the end of a file": (
        "open('log.txt', 'a').write('after'); assert open('log.txt').read() == 'before\\nafter'",
        "log.txt",
    ),
    "into a file": ("f = open('log.txt', 'r+'); f.seek(2); f.write('FOR'); f.close()", "log.txt"),
    "by os.open": ("os.write(os.open('log.txt', os.O_WRONLY | os.O_TRUNC), b'1')", "log.txt"),
    "torch.save": ("import torch; torch.save({'a': 1}, 'model.pt'); torch.save({'a': 1}, 'data/m.pt')", "data/m.pt"),
    "torch.jit.save": (
        "import torch; m = torch.jit.script(torch.nn.ReLU())\ntorch.jit.save(m, 'model.pt')\n"
        "m.save('data/m.pt'); m.save(f='data/y.txt')",
        "data/m.pt",
    ),
    "in a folder that is gone to": (
        "os.chdir('data'); os.chdir('deep'); open('x.txt', 'w').write('1')\n"
        "os.chdir('../..'); open('new.txt', 'w').write('1')",
        "new.txt",
    ),
    "removed": ("os.remove('data/deep/x.txt'); assert not os.path.exists('data/deep/x.txt')", ""),
    "removed with its folder": ("import shutil; shutil.rmtree('data'); assert not os.path.exists('data')", ""),
    "moved": ("os.rename('log.txt', 'data/old.txt'); os.replace('data/y.txt', 'z.txt')", "data/old.txt"),
    "sqlite": ("import sqlite3; c = sqlite3.connect('data/d.db'); c.execute('create table t (a)')", "data/d.db"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_stays_in_the_folder(name, tmp_path, source):
    before = state(source)
    body, file = WRITES[name]
    ran = run(tmp_path, f"assert open('data/deep/x.txt').read() == 'an input'\n{body}\n")
    assert ran.returncode == 0, ran.stderr
    assert state(source) == before
    assert not file or (tmp_path / "arm" / "work" / file).is_file()
    assert not file or not (source / file).exists() or file in before


def test_threads_that_write_at_once(tmp_path, source):
    before = state(source)
    body = (
        "import shutil, threading, time\n"
        "copy, begun = shutil.copy2, threading.Event()\n"
        "def slow(*paths): begun.set(); time.sleep(0.5); return copy(*paths)\n"
        "shutil.copy2 = slow\n"
        "def append(): open('log.txt', 'a').write('after')\n"
        "thread = threading.Thread(target=append); thread.start(); begun.wait()\n"
        "open('data/deep/x.txt', 'w').write('1'); thread.join()\n"
    )
    ran = run(tmp_path, body)
    assert ran.returncode == 0, ran.stderr
    assert state(source) == before


def test_what_other_arms_have_left_is_not_found(tmp_path, source):
    (source / "runs" / "ablate" / "reference").mkdir(parents=True)
    (source / "runs" / "ablate" / "reference" / "old.txt").write_text("of another arm")
    text = BEGIN.format(allow=False).replace('"arm" / "work"', '"source" / "runs" / "ablate" / "again" / "work"')
    text = text.replace("allow_writes=False", "False, Path(sys.argv[1]) / 'source' / 'runs' / 'ablate'")
    (tmp_path / "script.py").write_text(text)
    (tmp_path / "body.py").write_text(
        "os.mkdir('runs')\nassert not os.listdir('runs')\nassert os.path.exists('log.txt')\n"
    )
    ran = python("script.py", tmp_path, tmp_path / "body.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_folder_elsewhere_that_is_there_may_be_asked_for(tmp_path, source):
    body = f"os.makedirs({str(source / 'data')!r}, exist_ok=True)\nimport matplotlib\n"
    ran = run(tmp_path, body)
    assert ran.returncode == 0, ran.stderr


def test_a_folder_that_holds_the_arm_s_own_is_found_as_well(tmp_path, source):
    (source / "runs" / "before").mkdir(parents=True)
    (source / "runs" / "before" / "model.txt").write_text("kept")
    text = BEGIN.format(allow=False).replace('"arm" / "work"', '"source" / "runs" / "arm" / "work"')
    (tmp_path / "script.py").write_text(text)
    (tmp_path / "body.py").write_text(
        "assert open('runs/before/model.txt').read() == 'kept'\n"
        "assert os.listdir('runs') == ['before']\nopen('runs/new.txt', 'w').write('1')\n"
    )
    ran = python("script.py", tmp_path, tmp_path / "body.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in (source / "runs").iterdir()) == ["arm", "before"]


@pytest.mark.parametrize("how", ["open({!r}, 'w')", "os.mkdir({!r})", "import torch; torch.save(1, {!r})"])
def test_writing_elsewhere_is_refused_with_the_flag_that_allows_it(how, tmp_path, source):
    elsewhere = str(source / "out")  # absolute: a link does not help
    ran = run(tmp_path, how.format(elsewhere))
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.endswith(
        f"WritesElsewhere: the script writes {elsewhere}, outside of its arm's folder: --allow-writes lets it"
    )
    assert not (source / "out").exists()
    shutil.rmtree(tmp_path / "arm")
    assert run(tmp_path, how.format(elsewhere), allow=True).returncode == 0
    assert (source / "out").exists()


def test_temporary_files_and_caches_are_free(tmp_path, source):
    body = "import tempfile\nwith tempfile.TemporaryDirectory() as f: open(f + '/x', 'w')\nopen('/dev/null', 'w')"
    assert run(tmp_path, body).returncode == 0
