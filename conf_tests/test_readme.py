"""README: what it says to type works, in the order in which it stands. And it is short, with Start first."""

from __future__ import annotations

import glob
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conf_tests.helpers import PROCESSES, ROOT, Ran

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [match.groups() for match in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)]  # (language, text)
SHORT = {  # trained here, a few steps long, because commands after them need what they leave; all others are composed
    "recipe=gan",
    "-m recipe=td_asplit stop.target=detach,none seed=0,1,2",
}


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [
        shlex.split(part, comments=True) for line in lines for part in line.split(" && ") if shlex.split(part, True)
    ]


def run(arguments: list[str], cwd: Path, compose: bool = False) -> Ran:
    """``python arguments...`` in a process of its own. With ``compose``, train.py's runs end before they begin."""
    out, err = cwd / ".out", cwd / ".err"
    process = PROCESSES.Process(target=_run, args=(arguments, cwd, compose, out, err))
    process.start()
    process.join(120)
    process.kill()
    return Ran(process.exitcode, out.read_text(), err.read_text())


def _run(arguments: list[str], cwd: Path, compose: bool, out: Path, err: Path) -> None:
    os.chdir(cwd)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if compose:
        from stopgrad.runner import train as runner

        vars(runner)["run_on_ranks"] = lambda config, run: print("composed")  # after Hydra, and after every check
    sys.argv = [arguments[-1], *arguments[2:]] if arguments[0] == "-m" else arguments
    sys.path.insert(0, str(cwd))
    if arguments[0] == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


@dataclass
class Reader:
    """Somebody who types what README says, in a fresh clone. What is of no known kind fails: classify it here."""

    clone: Path
    environment: bool = False
    active: bool = False
    did: dict[str, Ran] = field(default_factory=dict)

    def type(self, words: list[str]) -> None:
        match words:
            case ["python3", "-m", "venv", ".venv"]:
                self.environment = True
            case ["source", ".venv/bin/activate"]:
                self.active = True
            case [".venv/bin/pip" | "pip", "install", *what]:
                self.install([each for each in what if each != "-e"])
            case ["python" | ".venv/bin/python" as python, *arguments]:
                assert self.active if python == "python" else self.environment, f"no {python} yet: {words}"
                self.python(arguments)
            case _:
                pytest.fail(f"README: a command of an unknown kind: {shlex.join(words)}")

    def install(self, what: list[str]) -> None:
        (distribution,) = what
        name, extra = re.fullmatch(r"(.+)\[(\w+)\]", distribution).groups()  # type: ignore[union-attr]
        assert name in (".", "stopgrad")
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M), f"no extra {extra}"

    def python(self, arguments: list[str]) -> None:
        said = shlex.join(arguments)
        match arguments:
            case ["-m", "pytest", *paths]:
                assert all((ROOT / path).exists() for path in paths)
            case ["train.py", *overrides]:
                self.train(said, overrides)
            case ["-m", "stopgrad", *rest]:
                found = [file for word in rest for file in sorted(glob.glob(word, root_dir=self.clone)) or [word]]
                self.done(said, run(["-m", "stopgrad", *found], self.clone))
            case [file] if file.endswith(".py"):
                self.done(said, run([file], self.clone))
            case _:
                pytest.fail(f"README: a command of an unknown kind: python {said}")

    def train(self, said: str, overrides: list[str]) -> None:
        script, plain = str(ROOT / "train.py"), " ".join(overrides)
        if "--help" in overrides:
            return self.done(said, run([script, *overrides], self.clone))
        short, seeds = plain in SHORT, "compare=" in plain
        added = ["trainer=smoke"] if short else ["hydra.sweeper.params.seed=0"] if seeds else []  # one seed: sooner
        ran = run([script, *overrides, *added, f"cache={ROOT / '.cache'}"], self.clone, compose=not short)
        assert short or "composed" in ran.stdout, f"{said}\n{ran.stderr}"
        return self.done(said, ran)

    def done(self, said: str, ran: Ran) -> None:
        assert ran.returncode == 0, f"python {said}\n{ran.stdout}\n{ran.stderr}"
        self.did[said] = ran


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """After the last command. A block of Python is saved under the name that the line before it gives, and run."""
    reader = Reader(tmp_path_factory.mktemp("clone"))
    for language, text in BLOCKS:
        if language == "python":
            named = re.search(r"`(\w+\.py)`:\n+\Z", TEXT.partition(f"```python\n{text}")[0])
            file = named[1] if named else "block.py"
            (reader.clone / file).write_text(text)
            reader.done(file, run([file], reader.clone))
        else:
            for words in commands(text):
                reader.type(words)
    return reader


def test_every_command_works_in_its_order(reader):
    assert len(reader.did) >= 12
    assert {"my.py", "block.py"} <= {*reader.did}


def test_every_block_is_shell_or_python():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_what_short_commands_train_stands_in_the_page(reader):
    assert {f"train.py {plain}" for plain in SHORT} <= {*reader.did}


def test_the_audit_prints_what_the_page_shows(reader):
    (ran,) = (ran for said, ran in reader.did.items() if said.startswith("-m stopgrad audit"))
    shown = re.search(r"prints\n\n((?:    .*\n)+)", TEXT)

    def shape(text: str) -> list[str]:
        return re.sub(r"\d\.\de[-+]\d+", "N", text).split()  # weights and batch are random: all but the norms is fixed

    assert shown
    assert shape(ran.stdout) == shape(shown[1])


def test_start_comes_first_and_the_page_is_short():
    assert len(TEXT.splitlines()) <= 150
    assert re.findall(r"^## .*", TEXT, re.M)[0] == "## Start"
    assert "```" not in TEXT.partition("## Start")[0]
    assert "python" not in TEXT.partition("## Start")[0].lower().replace("python-", "")
    assert len(commands(BLOCKS[0][1])) == 6  # two lines: an environment, an installation, and what is run in it


def test_the_instrument_is_on_the_first_screen():
    first = "\n".join(TEXT.splitlines()[:45])
    assert all(word in first for word in ("assert_flow", "stopgrad audit", "stopgrad explain"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)):
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        headings = re.findall(r"^#+ (.*)", (ROOT / file).read_text(), re.M) if anchor else []
        assert anchor in ["", *(re.sub(r"[^\w -]", "", h).lower().strip().replace(" ", "-") for h in headings)], target
