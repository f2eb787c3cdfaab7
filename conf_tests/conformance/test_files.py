"""A recipe's six files are there, and its page tells what the code and its comparisons hold."""

from __future__ import annotations

import importlib
import re
from xml.etree import ElementTree

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from conf_tests.conformance.catalogue import CHECKS, COMPARES, CONFIGS, RECIPES, composed, compositions, recipe_of
from conf_tests.conformance.page import commands, graph, header_commands, pictures
from conf_tests.helpers import ROOT
from stopgrad.cuts.strategies import check_stop, spelling
from stopgrad.runner.build import check_arguments
from stopgrad.runner.check import pinned
from stopgrad.runner.declared import LITERALS, declared_in

STEPS = {  # of "Add a recipe" in CONTRIBUTING.md, by the file that each asks for
    "recipes/{}.py": 1,
    "configs/recipe/{}.yaml": 2,
    "configs/compare/{}.yaml": 3,
    "conf_tests/recipes/test_{}.py": 4,
    "benchmarks/plain/{}.py": 5,
    "docs/recipes/{}.md": 6,
}


def configs_of(recipe):
    return [name for name, each in CONFIGS.items() if each == recipe]


def compares_of(recipe):
    return [name for name in COMPARES if CONFIGS[recipe_of(name)] == recipe]


def text_of(path, recipe):
    """Of one of the six files; a test of one that is missing fails with what to do."""
    file = ROOT / path.format(recipe)
    if not file.exists():
        told(path.format(recipe), [f"missing; see CONTRIBUTING.md, Add a recipe, step {STEPS[path]}"])
    return file.read_text(encoding="utf-8")


def page_of(recipe):
    return text_of("docs/recipes/{}.md", recipe)


def told(name, problems):
    """Fail with all that is wrong, a line each."""
    problems = [f"{name}: {problem}" for problem in problems]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def check_command(command):
    """What is wrong with ``python train.py ...``, in a line; or nothing."""
    try:
        for config in compositions(command):
            one = pinned(config) if config.arm is not None else config
            of = declared_in(ROOT.joinpath(*one.recipe._target_.split(".")[:-1]).with_suffix(".py"))
            check_stop(dict(one.stop), of.boundaries, of.switches)
            check_arguments("recipe", one.recipe)
            check_arguments("data", one.data)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return f"`{command}` does not compose: {' '.join(str(error).split())}"
    return None


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_six_files_are_there(recipe):
    missing = {path.format(recipe): step for path, step in STEPS.items() if not (ROOT / path.format(recipe)).exists()}
    steps = [f"{path}: missing; see CONTRIBUTING.md, Add a recipe, step {step}" for path, step in missing.items()]
    told(f"recipes/{recipe}.py", steps)


def test_no_file_is_left_of_a_recipe_that_is_gone():
    for pattern in ("docs/recipes/*.md", "benchmarks/plain/*.py"):
        left = {file.stem for file in ROOT.glob(pattern)} - {*RECIPES, "index", "__init__"}
        assert not left, f"{pattern}: of no recipe: {', '.join(left)}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_tests_test_it(recipe):
    text = text_of("conf_tests/recipes/test_{}.py", recipe)
    assert re.search(r"^ *def test_", text, flags=re.MULTILINE)
    assert f"recipes.{recipe}" in text or f"recipe={recipe}" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_commands_in_the_configs_head_compose(name):
    found = header_commands((ROOT / "configs" / "recipe" / f"{name}.yaml").read_text())
    problems = [problem for command in found if (problem := check_command(command))]
    if f"python train.py recipe={name}" not in found:
        problems.append(f"its head lacks the comment `# python train.py recipe={name}`, the command that runs it")
    told(f"configs/recipe/{name}.yaml", problems)


@pytest.mark.parametrize("compare", COMPARES)
def test_the_command_in_the_comparisons_head(compare):
    head = header_commands((ROOT / "configs" / "compare" / f"{compare}.yaml").read_text())
    assert f"python train.py -m compare={compare}" in head


@pytest.mark.parametrize("recipe", RECIPES)
class TestPage:
    def test_tells_the_pattern_and_every_choice(self, recipe):
        page, of = page_of(recipe), declared_in(ROOT / "recipes" / f"{recipe}.py")
        shown = graph((ROOT / "recipes" / f"{recipe}.py").read_text())
        problems = [f"lacks this line of the recipe's graph: {line}" for line in shown if line not in page]
        if not any("‖" in line for line in shown):
            problems.append("the recipe's docstring has no graph, with ‖ at each cut")
        for name, legal in {**of.boundaries, **of.switches}.items():
            if f"stop.{name}" not in page:
                problems.append(f"does not mention stop.{name}")
            unsaid = [each for each in map(spelling, legal) if f"`{each}`" not in page]
            problems += [f"does not mention `{each}`, a choice of stop.{name}" for each in unsaid]
        told(f"docs/recipes/{recipe}.md", problems)

    def test_its_commands_work(self, recipe):
        page = page_of(recipe)
        found = commands(page, "python train.py")
        problems = [problem for command in found if (problem := check_command(command))]
        own = {f"recipe={name}" for name in configs_of(recipe)} | {f"compare={name}" for name in compares_of(recipe)}
        if not any(own & set(command.split()) for command in found):
            problems.append(f"shows no `python train.py` with one of {', '.join(sorted(own))}")
        for command in [*commands(page, "python benchmarks"), *commands(page, "pytest")]:
            for file in re.findall(r"(?:benchmarks|conf_tests)/\S+", command):
                if not (ROOT / file).exists():
                    problems.append(f"`{command}`: there is no {file}")
                elif (words := re.search(r"-k (\w+)", command)) and words[1] not in (ROOT / file).read_text():
                    problems.append(f"`{command}`: no test of that name in {file}")
        told(f"docs/recipes/{recipe}.md", problems)

    def test_its_figures_say_their_command(self, recipe):
        page, problems = page_of(recipe), []
        for compare in compares_of(recipe):
            _, made_by, section = page.partition(f"python train.py -m compare={compare}`")
            if not made_by:
                problems.append(f"does not show `python train.py -m compare={compare}`, which makes its figures")
                continue
            arms = composed(f"compare={compare}").compare.arms
            unsaid = [arm for arm in arms if f"`{arm}`" not in section]
            problems += [f"has no row of the arm `{arm}` of compare={compare}" for arm in unsaid]
        if "seed" not in page:
            problems.append("does not say with which seeds its figures were made")
        told(f"docs/recipes/{recipe}.md", problems)

    def test_its_pictures_are_there_and_say_their_command(self, recipe):
        page, of = page_of(recipe), declared_in(ROOT / "recipes" / f"{recipe}.py")
        shown = " ".join(command for command in commands(page, "python -m stopgrad compare"))
        problems = []
        measured = [(words, path) for words, path in pictures(page) if not path.endswith("-flow.svg")]
        for words, path in measured:
            file = (ROOT / "docs" / "recipes" / path).resolve()
            name = file.relative_to(ROOT)
            if not file.exists():
                problems.append(f"{path}: there is no such picture")
            if not words.strip():
                problems.append(f"{path}: says in no words what it shows")
            if f"--picture {name}" not in shown:
                problems.append(f"{path}: no command `python -m stopgrad compare ... --picture {name}` that made it")
        if bool(measured) == ("picture" in of.exempt):
            problems.append("has a picture, or EXEMPT says why not: one of the two")
        told(f"docs/recipes/{recipe}.md", problems)

    def test_its_flow_picture_shows_what_it_declares(self, recipe):
        page, of = page_of(recipe), declared_in(ROOT / "recipes" / f"{recipe}.py")
        name, command = f"docs/pictures/{recipe}-flow.svg", f"python docs/generate.py --pictures {recipe}"
        if not (ROOT / name).exists():
            told(name, [f"there is no such picture; make it by `{command}`"])
        root = ElementTree.parse(ROOT / name).getroot()
        words = root.findtext("{http://www.w3.org/2000/svg}desc") or ""
        groups = [each for each in root.iter() if each.get("class")]
        losses = {each.get("data-loss") for each in groups if each.get("class") == "node loss"}
        bars = {each.get("data-boundary") for each in groups if "cut" in each.get("class").split()} - {""}
        bars |= set(re.findall(r"stop\.(\w+)", words.partition("Not crossed: ")[2]))
        problems = []
        for kind, shown, wanted in (
            ("losses", losses, set(importlib.import_module(f"recipes.{recipe}").FLOW)),
            ("boundaries", bars, set(of.boundaries)),
        ):
            if shown != wanted:
                problems.append(f"shows the {kind} {sorted(shown)}, not {sorted(wanted)}; make it anew by `{command}`")
        if (ROOT / name).stat().st_size > 40_000:
            problems.append("has more than 40 kB")
        if (words, f"../pictures/{recipe}-flow.svg") not in pictures(page):
            problems.append(f"docs/recipes/{recipe}.md does not show it with its words: `python docs/generate.py`")
        told(name, problems)


class TestContributing:
    PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def test_shows_code_that_is_there(self):
        shown = re.findall(r"^```(?:python|yaml)\n(.*?)^```", self.PAGE, flags=re.DOTALL | re.MULTILINE)
        files = [(ROOT / path).read_text() for path in ("recipes/td.py", "configs/compare/td.yaml")]
        assert len(shown) == 3
        for text in shown:
            assert any(text in file for file in files), f"stale: not in the recipe as it is:\n{text}"

    def test_tells_each_file_literal_and_check(self):
        for path, step in STEPS.items():
            assert f"### {step}. `{path.format('NAME')}`" in self.PAGE
        assert [name for name in (*LITERALS, *CHECKS) if f"`{name}`" not in self.PAGE] == []


class TestReading:
    """The readers themselves, on text made up."""

    PAGE = """Run `python train.py -m
recipe=a` now, and no `python train.pyx`.

    python train.py recipe=b   # so

```bash
python x.py
python train.py recipe=c \\
  seed=1
```

![what it shows](../p.png) and ![](q.png)
"""
    HEAD = """# @package _global_
# python train.py recipe=a   it works
# python train.py b=1
defaults:
# python train.py c=1
"""

    def test_commands(self):
        assert commands(self.PAGE, "python train.py") == [
            "python train.py recipe=c    seed=1",
            "python train.py recipe=b   # so",
            "python train.py -m recipe=a",
        ]
        assert header_commands(self.HEAD) == ["python train.py recipe=a", "python train.py b=1"]

    def test_pictures(self):
        assert pictures(self.PAGE) == [("what it shows", "../p.png"), ("", "q.png")]

    def test_graph(self):
        text = 'r"""A: b.\n\n    x ──> ‖ ──> y\n          z\n\n    u ──> v\n\nText.\n\n    python train.py\n"""\n'
        assert graph(text) == ["x ──> ‖ ──> y", "z", "u ──> v"]

    @pytest.mark.parametrize(
        ("command", "problem"),
        [
            ("python train.py -m recipe=td stop.target=detach,none seed=0,1   # two arms", None),
            ("python train.py recipe=nope", "does not compose: .*nope"),
            ("python train.py recipe=td stop.target=detatch", "does not compose: stop.target=detatch: .* did you mean"),
            ("python train.py -m recipe=td stop.target=detach,nope", "does not compose: stop.target=nope: "),
            ("python train.py recipe=td recipe.nope=1", "does not compose: "),
            ("python train.py recipe=td recipe.discount=-1", "does not compose: recipe.discount=-1"),
        ],
    )
    def test_a_command_that_does_not_compose(self, command, problem):
        found = check_command(command)
        assert (found is None) == (problem is None), found
        assert problem is None or re.search(problem, found)
