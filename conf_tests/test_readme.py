"""README and docs/own_project.md: what they say to type works, in the order in which it stands."""

from __future__ import annotations

import glob
import json
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conf_tests.helpers import PROCESSES, ROOT, Ran

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/own_project.md")}
README = PAGES["README.md"]
SHORT = {  # trained here, a few steps long, because commands after them need what they leave; all others are composed
    "recipe=gan",
    "-m recipe=td_asplit stop.target=detach,none seed=0,1,2",
}
ONE = ["hydra.sweeper.params.seed=0", "hydra.sweeper.params.arm=${compare.reference}"]  # conformance composes all arms


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    said = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [words for words in said if words]


def run(arguments: list[str], cwd: Path, compose: bool = False) -> Ran:
    """``python arguments...`` in a process of its own. With ``compose``, train.py's runs end before they begin."""
    out, err = cwd / ".out", cwd / ".err"
    process = PROCESSES.Process(target=_run, args=(arguments, cwd, compose, out, err))
    process.start()
    process.join(300)
    process.kill()
    return Ran(process.exitcode, out.read_text(), err.read_text())


def _run(arguments: list[str], cwd: Path, compose: bool, out: Path, err: Path) -> None:
    os.chdir(cwd)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if compose:
        from stopgrad.runner import train as runner

        ends = {"one_run": lambda config: print("composed"), "launch": lambda run, jobs: jobs and print("composed")}
        vars(runner).update(ends)  # after Hydra, and after every check
    sys.path.insert(0, str(cwd))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


@dataclass
class Reader:
    """Somebody who types what a page says, in a fresh clone. What is of no known kind fails: classify it here."""

    folder: Path
    environment: bool = False
    active: bool = False
    did: dict[str, Ran] = field(default_factory=dict)

    def type(self, words: list[str]) -> None:
        match words:
            case ["python3", "-m", "venv", ".venv"]:
                self.environment = True
            case ["source", ".venv/bin/activate"]:
                assert self.environment
                self.active = True
            case ["cd", folder]:
                self.folder /= folder
                assert self.folder.is_dir(), f"no {folder}"
            case [".venv/bin/pip" | ".venv/bin/python" as program, *arguments]:
                assert self.environment, f"no .venv yet: {shlex.join(words)}"
                self.run(Path(program).name, arguments)
            case ["pip" | "python" as program, *arguments]:
                assert self.active, f"in which environment? {shlex.join(words)}"
                self.run(program, arguments)
            case _:
                pytest.fail(f"a command of no known kind: {shlex.join(words)}")

    def run(self, program: str, arguments: list[str]) -> None:
        match [program, *arguments]:
            case ["pip", "install", "-e", what] if what.startswith(".["):
                self.install(what)
            case ["pip", "install", what] if what.startswith("stopgrad["):
                self.install(what)
            case ["python", "-m", "pytest"]:
                pass  # of the checkout: you are here; of a project: conf_tests/test_new.py
            case ["python", "-m", "stopgrad", *rest]:
                words = [path for word in rest for path in sorted(glob.glob(word, root_dir=self.folder)) or [word]]
                self.done(arguments, run(["-m", "stopgrad", *words], self.folder))
            case ["python", "train.py", *overrides]:
                self.train(arguments, overrides)
            case ["python", file]:
                self.done(arguments, run([file], self.folder))
            case _:
                pytest.fail(f"a command of no known kind: {program} {shlex.join(arguments)}")

    def install(self, what: str) -> None:
        extra = what.partition("[")[2].removesuffix("]")
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M), f"no extra {extra}"

    def train(self, said: list[str], overrides: list[str]) -> None:
        """What others need is trained, with SHORT's number of steps; of the rest, every check before a run is made."""
        own = self.folder / "train.py"
        script, short = str(own if own.exists() else ROOT / "train.py"), " ".join(overrides) in SHORT
        added = ["trainer=smoke"] if short else ONE if any(each.startswith("compare=") for each in overrides) else []
        ran = run([script, *overrides, *added, f"cache={ROOT / '.cache'}"], self.folder, compose=not short)
        assert short or "--help" in overrides or "composed" in ran.stdout, f"{shlex.join(said)}\n{ran.stderr}"
        self.done(said, ran)

    def done(self, said: list[str], ran: Ran) -> None:
        assert ran.returncode == 0, f"python {shlex.join(said)}\n{ran.stdout}\n{ran.stderr}"
        self.did[shlex.join(said)] = ran


def read(page: str, reader: Reader) -> Reader:
    """Type the page's commands. A block of Python is saved under the name that the line before it gives, and run."""
    for language, text in blocks(page):
        if language == "bash":
            for words in commands(text):
                reader.type(words)
        elif language == "python":
            named = re.search(r"`(\w+\.py)`:\n+\Z", page.partition(f"```python\n{text}")[0])
            file = named[1] if named else "block.py"
            (reader.folder / file).write_text(text)
            reader.done([file], run([file], reader.folder))
        else:
            pytest.fail(f"a block that is neither bash nor python: {text}")
    return reader


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """After README's last command."""
    return read(README, Reader(tmp_path_factory.mktemp("clone")))


def test_every_command_of_readme_works_in_its_order(readme):
    assert {"my.py", "block.py", *(f"train.py {words}" for words in SHORT)} <= {*readme.did}
    assert readme.environment
    assert readme.active


def test_every_command_of_own_project_works_in_its_order(tmp_path):
    reader = read(PAGES["docs/own_project.md"], Reader(tmp_path, environment=True, active=True))
    assert (reader.folder / "tests").is_dir()
    assert "boundary stop.target=" in reader.did["train.py recipe=td3 --help"].stdout


def test_run_and_audit_print_what_readme_shows(readme):
    shown = re.search(r"as it should be.*\n\n((?:    .*\n)+)", README)
    assert shown
    (ran,) = (ran for said, ran in readme.did.items() if said.startswith("-m stopgrad run"))
    assert re.sub(r"^    ", "", shown[1], flags=re.M) in ran.stderr
    (ran,) = (ran for said, ran in readme.did.items() if said.startswith("-m stopgrad audit"))
    line = re.search(r"The first prints `(.*?)`", README)
    assert line
    assert line[1] in ran.stdout


def test_start_comes_first_and_readme_is_short():
    written = re.sub(r"^<!-- recipes: .*?^<!-- end of recipes -->", "", README, flags=re.M | re.S)  # it grows with them
    assert len(written.splitlines()) <= 140
    assert re.findall(r"^## .*", README, re.M)[0] == "## Start"
    assert not re.search(r"```|^    |\bpython ", README.partition("## Start")[0], re.M)
    assert len(blocks(README)[0][1].splitlines()) == 2
    assert len(commands(blocks(README)[0][1])) == 6  # twice: an environment, an installation, and what is run in it


def test_the_instrument_is_on_the_first_screen():
    first = "\n".join(README.splitlines()[:50])
    assert "stopgrad run gan.py" in first
    assert "error: gan.py:8" in first
    assert all(word in README for word in ("assert_flow", "stopgrad audit", "stopgrad explain"))


def test_figures_say_what_they_depend_on():
    """A user's figure differed in the third digit, and nothing said why."""
    assert "(docs/comparison.md#what-figures-depend-on)" in README
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    section = page.partition("## What figures depend on")[2].partition("\n## ")[0]
    assert all(word in section for word in ("same machine", "torch", "number of threads", "version of a library"))
    for file in (ROOT / "docs" / "measured").glob("*.json"):
        digest = json.loads(file.read_text())
        assert {*digest} >= {"command", "commit", "threads", "versions"}, file.name
        assert "torch" in digest["versions"], file.name


def test_readmes_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)):
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        headings = re.findall(r"^#+ (.*)", (ROOT / file).read_text(), re.M) if anchor else []
        assert anchor in ["", *(re.sub(r"[^\w -]", "", h).lower().strip().replace(" ", "-") for h in headings)], target
