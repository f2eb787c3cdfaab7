"""``python -m stopgrad new``: what it writes, what it refuses, and that it runs out of a wheel alone."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conf_tests.helpers import ROOT, config, result
from stopgrad.__main__ import main
from stopgrad.runner import new
from stopgrad.runner.names import register
from stopgrad.runner.shelf import Shelf, shelf

RECIPES = shelf().names("recipe")


def composed(project, *overrides):
    """The config of a run in the project of that folder, with Hydra's own section."""
    register()
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def sections(config):
    """What a run is made of: all but Hydra's own."""
    return {name: node for name, node in OmegaConf.to_container(config).items() if name != "hydra"}


def targets(node):
    """Every ``_target_`` below a section, in the project's ``recipes``."""
    if not isinstance(node, dict):
        return set()
    found = {name for child in node.values() for name in targets(child)}
    return {name for name in found | {str(node.get("_target_"))} if name.startswith("recipes.")}


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A project of each recipe."""
    found = {}
    for recipe in RECIPES:
        found[recipe] = tmp_path_factory.mktemp("own") / f"my_{recipe}"
        assert main(["new", str(found[recipe]), "--from", recipe]) == 0
    return found


@pytest.fixture(scope="module")
def loaded():
    """For each recipe the files of ``recipes/`` that Python loads with it: what it needs, asked of Python."""
    program = """if True:
        import importlib, json, os, sys
        found = {}
        for recipe, targets in json.loads(sys.argv[1]).items():
            for name in [name for name in sys.modules if name.partition(".")[0] == "recipes"]:
                del sys.modules[name]
            for target in targets:
                importlib.import_module(target.rpartition(".")[0])
            modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "recipes"]
            found[recipe] = sorted(os.path.relpath(module.__file__) for module in modules)
        print(json.dumps(found))
    """
    asked = {recipe: sorted(targets(sections(config(f"recipe={recipe}")))) for recipe in RECIPES}
    command = [sys.executable, "-W", "ignore", "-c", program, json.dumps(asked)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("recipe", RECIPES)
class TestProject:
    def test_holds_the_code_that_is_needed_and_no_other(self, recipe, projects, loaded):
        project = projects[recipe]
        assert sorted(str(file.relative_to(project)) for file in project.glob("recipes/**/*.py")) == loaded[recipe]
        for path in ("train.py", *loaded[recipe]):
            assert (project / path).read_bytes() == (ROOT / path).read_bytes()

    def test_runs_the_recipe_by_default(self, recipe, projects):
        assert sections(composed(projects[recipe])) == sections(config(f"recipe={recipe}"))

    def test_every_config_composes_and_its_code_is_there(self, recipe, projects):
        project = projects[recipe]
        for file in project.glob("configs/*/*.yaml"):
            one = composed(project, f"{file.parent.name}={file.stem}")
            assert one.hydra.runtime.choices.recipe == recipe
            for target in targets(sections(one)):
                assert (project / target.rpartition(".")[0].replace(".", "/")).with_suffix(".py").is_file()

    def test_has_its_comparisons(self, recipe, projects):
        names = [file.stem for file in projects[recipe].glob("configs/compare/*.yaml")]
        files = ROOT.glob("configs/compare/*.yaml")
        assert names
        assert set(names) == {file.stem for file in files if f"override /recipe: {recipe}\n" in file.read_text()}

    def test_readme_names_every_choice_and_its_commands_compose(self, recipe, projects):
        text = (projects[recipe] / "README.md").read_text()
        assert "$" not in text
        for name, choice in config(f"recipe={recipe}").stop.items():
            assert f"| `stop.{name}` | `{choice}` " in text
        commands = re.findall(r"^python train.py ?(.*?) *(?:#.*)?$", text, flags=re.M)
        assert len(commands) == 6
        for command in filter(None, commands):
            composed(projects[recipe], *(word for word in command.split() if not word.startswith("-")))


def test_only_what_this_recipe_needs(projects):
    """Two of them by name; the rest is asked of Python above."""
    assert not (projects["td3"] / "recipes" / "parts" / "images.py").exists()
    assert [file.name for file in (projects["td3"] / "configs" / "data").iterdir()] == ["replay.yaml"]
    data = {file.stem for file in (projects["gan"] / "configs" / "data").iterdir()}
    assert data == {"digits", "mnist", "mnist5k", "cifar10"}


def small_shelf(folder):
    """One recipe that uses every way to need something."""
    for path, text in {
        "train.py": "",
        "configs/train.yaml": "defaults:\n  - data: other\n  - recipe: other # the default\n",
        "configs/recipe/base.yaml": "defaults:\n  - root\n  - override /data: here\n",
        "configs/recipe/root.yaml": "recipe: {_target_: recipes.mine.Mine}\n",
        "configs/recipe/mine.yaml": "defaults:\n  - base\n\nstop:\n  a: none # what |a| is\n"
        "\nrecipe:\n  n: {_target_: recipes.n.N}\n",
        "configs/recipe/other.yaml": "recipe: {_target_: recipes.other.Other}\n",
        "configs/data/here.yaml": "_target_: recipes.parts.here.Here\n",
        "configs/data/same.yaml": "defaults: [here]\n",
        "configs/data/there.yaml": "_target_: recipes.parts.there.There\n",
        "configs/data/other.yaml": "_target_: recipes.other.Data\n",
        "configs/compare/c.yaml": "defaults:\n  - override /recipe: mine\n  - override /data: there\n",
        "configs/compare/other.yaml": "defaults:\n  - override /recipe: other\n",
        "recipes/__init__.py": "",
        "recipes/mine.py": '"""A."""\n'
        'BOUNDARIES = {"a": ["none", "scale", "data", "no_grad"], "b": ["detach", "no_grad", "none"], "c": ["none"]}\n'
        'SWITCHES = {"s": ["first", "second"]}\n'
        'REFUSES = {"stop.a=data": "no"}\n'
        'NEEDS = {"stop.a": ["stop.s=second"]}\n'
        'WITHOUT = {"b": "x | y"}\n'
        'SMALL = ["data.n=1"]\n'
        "from .parts import used\n",
        "recipes/n.py": "def f():\n    import recipes.late\n",
        "recipes/late.py": "",
        "recipes/other.py": "",
        "recipes/parts/__init__.py": "from .inner.deep import x\n",
        "recipes/parts/used.py": "",
        "recipes/parts/here.py": "",
        "recipes/parts/there.py": "",
        "recipes/parts/inner/__init__.py": "",
        "recipes/parts/inner/deep.py": "x = 1\n",
        "recipes/parts/unused.py": "import recipes.other\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return Shelf(folder)


class TestFiles:
    def test_all_ways_to_need_something(self, tmp_path):
        files = new.project_files(small_shelf(tmp_path), "mine", "x")
        assert {path for path in files if path.endswith((".py", ".yaml"))} == {
            *("train.py", "tests/test_mine.py", "configs/train.yaml", "configs/compare/c.yaml"),
            *("configs/recipe/mine.yaml", "configs/recipe/base.yaml", "configs/recipe/root.yaml"),
            *("configs/data/here.yaml", "configs/data/same.yaml", "configs/data/there.yaml"),
            *("recipes/__init__.py", "recipes/mine.py", "recipes/n.py", "recipes/late.py"),
            *("recipes/parts/__init__.py", "recipes/parts/used.py", "recipes/parts/here.py", "recipes/parts/there.py"),
            *("recipes/parts/inner/__init__.py", "recipes/parts/inner/deep.py"),
        }
        assert files["configs/train.yaml"] == "defaults:\n  - data: here\n  - recipe: mine # the default\n"

    def test_declarations_are_used(self, tmp_path):
        files = new.project_files(small_shelf(tmp_path), "mine", "x")
        assert 'QUICK = ["trainer=smoke", "data.n=1"]' in files["tests/test_mine.py"]
        assert 'FLIPPED = ["stop.a=no_grad stop.s=second", "stop.b=none"]' in files["tests/test_mine.py"]
        assert "| `stop.a` | `none` `scale:a` `data` `no_grad` | what \\|a\\| is |" in files["README.md"]
        assert "| `stop.b` | `detach` `no_grad` `none` | otherwise: x \\| y |" in files["README.md"]


def test_the_page_lists_every_file():
    """docs/own_project.md, for td3."""
    page = (ROOT / "docs" / "own_project.md").read_text()
    section = page.partition("## What you get")[2].partition("\n## ")[0]
    listed = re.findall(r"^    ([\w/]+\.\w+)(?:  .*)?$", section, re.M)
    files = new.project_files(shelf(), "td3", "x")
    assert listed
    assert {*listed, ".gitignore"} == {path for path in files if not path.endswith("__init__.py")}


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            ("mine", "--from", "td4"): "--from=td4: choose one of .*bandit, .*; did you mean td3?\\?",
            ("mine",): "--from: choose one of .*bandit, .*td3.*",
            ("full", "--from", "td"): ".*/full: not empty; choose an empty folder or a new one",
            ("file", "--from", "td"): ".*/file: a file; choose an empty folder or a new one",
            ("no/where", "--from", "td"): ".*/no/where: there is no folder .*/no",
            ("my-project", "--from", "td"): "my-project: not a Python name; .*; did you mean my_project\\?",
            ("3d", "--from", "td"): "3d: not a Python name; .*; did you mean d\\?",
            ("class", "--from", "td"): "class: not a Python name; choose one of the letters a-z, digits and _",
            ("naïve", "--from", "td"): "naïve: not a Python name; .*",
            ("mine_", "--from", "td"): "mine_: not a Python name; .*; did you mean mine\\?",
        }.items(),
    )
    def test_in_one_line(self, arguments, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        before = sorted(tmp_path.rglob("*"))
        assert main(["new", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(f"error: {message}\n", err), err
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
    def test_nothing_is_left_half_written(self, error, there, tmp_path, monkeypatch, capsys):
        folder = tmp_path / "mine"
        if there:
            folder.mkdir()
        write, written = Path.write_text, []

        def failing(file, text, **options):
            if len(written) == 5:
                raise error
            written.append(file)
            return write(file, text, **options)

        monkeypatch.setattr(Path, "write_text", failing)
        if isinstance(error, OSError):
            assert main(["new", str(folder), "--from", "td"]) == 2
            assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
        else:
            with pytest.raises(KeyboardInterrupt):
                main(["new", str(folder), "--from", "td"])
        assert len(written) == 5
        assert list(tmp_path.rglob("*")) == ([folder] if there else [])

    def test_without_the_extra(self, tmp_path):
        program = """if True:
            import sys
            sys.modules["omegaconf"] = None
            from stopgrad.__main__ import main
            sys.exit(main(["new", sys.argv[1], "--from", "td"]))
        """
        command = [sys.executable, "-c", program, str(tmp_path / "mine")]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        message = 'error: new: omegaconf is not installed: pip install "stopgrad[recipes]"\n'
        assert (ran.returncode, ran.stderr) == (2, message)


def test_into_the_current_folder(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["new", ".", "--from", "td"]) == 0
    assert 'name = "mine"' in (folder / "pyproject.toml").read_text()
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [".gitignore", "README.md", "configs", "pyproject.toml", "recipes", "tests", "train.py"]
    )
    assert "cd" not in capsys.readouterr().out


# ---- out of a wheel

SETUPTOOLS = importlib.util.find_spec("setuptools") and int(version("setuptools").partition(".")[0])
STALE = "stopgrad/shelf/recipes/stale.py"


def call(*command, cwd):
    """Run a command with nothing in its environment that leads to the checkout; what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STOPGRAD"))}
    environment = kept | {"PYTHONNOUSERSITE": "1"}
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from an sdist, in a folder where an earlier build has left a recipe that is no more."""
    if not SETUPTOOLS or SETUPTOOLS < 77:
        pytest.skip("building needs setuptools>=77: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("stopgrad", "recipes", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "train.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    call(sys.executable, "-c", build, "build_sdist", folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    (unpacked / "build" / "lib" / STALE).parent.mkdir(parents=True)
    (unpacked / "build" / "lib" / STALE).write_text("")
    call(sys.executable, "-c", build, "build_wheel", folder, cwd=unpacked)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Python of a fresh environment in which the wheel is installed. Torch and the like it shares with this one."""
    folder = tmp_path_factory.mktemp("fresh")
    call(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "shared.pth").write_text("\n".join(shared))  # its own .pth files, an editable stopgrad, are not read
    return python


def test_wheel_holds_the_package_and_the_shelf_and_no_more(wheel):
    folders = [(ROOT / "stopgrad", "stopgrad"), (ROOT / "recipes", "stopgrad/shelf/recipes")]
    folders += [(ROOT / "configs", "stopgrad/shelf/configs")]
    expected = {"stopgrad/shelf/train.py": ROOT / "train.py"}
    for folder, inside in folders:
        for file in folder.rglob("*.*"):
            if "__pycache__" not in file.parts:
                expected[f"{inside}/{file.relative_to(folder)}"] = file
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        assert names == set(expected)
        assert all(packed.read(name) == file.read_bytes() for name, file in expected.items())


def test_nothing_leads_to_the_checkout(python, tmp_path):
    """The other tests of the wheel mean nothing where this fails."""
    program = """if True:
        import importlib.util, json, stopgrad, sys
        finders = [str(finder) for finder in sys.meta_path]
        print(json.dumps([stopgrad.__file__, sys.path, finders, importlib.util.find_spec("recipes") is None]))
    """
    file, paths, finders, alone = json.loads(call(python, "-c", program, cwd=tmp_path))
    packages = Path(file).parents[1]
    assert packages.is_relative_to(python.parents[1])
    others = [path for path in map(Path, paths) if path != packages and path != Path()]  # that one is tmp_path
    assert not [path for path in others if path == ROOT or (path / "stopgrad").exists() or (path / "recipes").exists()]
    assert not [finder for finder in finders if "editable" in finder.lower()]
    assert alone


@pytest.fixture(scope="module")
def project(python, tmp_path_factory):
    """A project of the cheapest recipe, begun by the wheel."""
    folder = tmp_path_factory.mktemp("wheel_project")
    call(python, "-m", "stopgrad", "new", "mine", "--from", "td", cwd=folder)
    return folder / "mine"


class TestOutOfTheWheel:
    def test_files_are_those_of_the_checkout(self, project):
        files = new.project_files(Shelf(ROOT), "td", "mine")
        there = [file for file in project.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert {str(file.relative_to(project)) for file in there} == set(files)
        assert {path: (project / path).read_text() for path in files} == files

    def test_smoke_run(self, python, project, tmp_path):
        call(python, "train.py", "trainer=smoke", f"hydra.run.dir={tmp_path}", cwd=project)
        ran = result(tmp_path)
        assert (ran["recipe"], ran["status"], ran["steps"], ran["violations"]) == ("td", "finished", 8, [])
        assert ran["commit"] is None
        assert ran["replay"]["cwd"] == str(project)

    def test_comparison(self, python, project, tmp_path):
        arms = ["compare=td", "arm=detach,no_grad,none", "seed=0", "trainer=smoke"]
        call(python, "train.py", "-m", *arms, f"hydra.sweep.dir={tmp_path}", cwd=project)
        content = json.loads((tmp_path / "comparison.json").read_text())
        verdicts = {arm["name"]: arm["verdict"] for arm in content["arms"]}
        assert set(verdicts) == {"detach", "no_grad", "none"}
        assert verdicts["no_grad"] == "identical"
        assert verdicts["none"] != "identical"
        (tmp_path / "comparison.json").unlink()
        call(python, "-m", "stopgrad", "compare", tmp_path, cwd=project)
        assert (tmp_path / "comparison.json").is_file()

    def test_help_speaks_of_this_project(self, python, project):
        text = call(python, "train.py", "--help", cwd=project)
        assert "  python train.py recipe=td stop.target=none\n" in text
        assert "  python train.py -m compare=td\n" in text
        assert "gan" not in text
        assert "stop.prediction=none|detach" in call(python, "train.py", "recipe=td", "--help", cwd=project)

    def test_its_tests_pass(self, python, project):
        assert "4 passed" in call(python, "-m", "pytest", cwd=project)

    def test_a_boundary_is_added_as_the_readme_says(self, python, project, tmp_path):
        """And flipped, and the run tells; in a copy."""
        mine = tmp_path / "mine"
        shutil.copytree(project, mine)
        last = "        return (batch.rewards"
        for path, before, after in (
            ("recipes/td.py", "BOUNDARIES = {\n", 'BOUNDARIES = {\n    "mine": ["detach", "none"],\n'),
            ("recipes/td.py", last, f"        bootstrap = self.stop.mine.cross(bootstrap)\n{last}"),
            ("recipes/td.py", '"stop.target": "blocked"', '"stop.mine": "blocked"'),
            ("configs/recipe/td.yaml", "stop:\n", "stop:\n  mine: detach\n"),
        ):
            text = (mine / path).read_text()
            assert text.count(before) == 1
            (mine / path).write_text(text.replace(before, after))
        choices = ["stop.target=none", "stop.mine=detach,none", "trainer=smoke", f"hydra.sweep.dir={tmp_path}"]
        call(python, "train.py", "-m", *choices, cwd=mine)
        runs = [result(file.parent) for file in tmp_path.glob("*/seed-0/result.json")]
        violations = {run["stop"]["mine"]: run["violations"] for run in runs}
        assert violations["detach"] == []
        (violation,) = violations["none"]
        assert "td_loss reaches stop.mine, which the contract calls blocked" in violation


@pytest.mark.full
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_project_runs_out_of_the_wheel(recipe, python, tmp_path):
    call(python, "-m", "stopgrad", "new", "mine", "--from", recipe, cwd=tmp_path)
    project = tmp_path / "mine"
    call(python, "train.py", "trainer=smoke", "hydra.run.dir=trained", cwd=project)
    checkpoint = ["mode=evaluate", "ckpt_path=trained/checkpoints/last.ckpt", "hydra.run.dir=evaluated"]
    call(python, "train.py", *checkpoint, cwd=project)
    trained, evaluated = result(project / "trained"), result(project / "evaluated")
    assert trained["status"] == evaluated["status"] == "finished"
    assert trained["weights_sha256"] == evaluated["weights_sha256"]
    assert "failed" not in call(python, "-m", "pytest", cwd=project)
