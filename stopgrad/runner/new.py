"""``python -m stopgrad new FOLDER --from RECIPE``: a project of one's own, begun with one recipe."""

from __future__ import annotations

import ast
import json
import keyword
import re
import shutil
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Any

from omegaconf import OmegaConf

import stopgrad
from stopgrad.cuts.strategies import spelling
from stopgrad.runner.declared import declared_in
from stopgrad.runner.errors import InputError, choose
from stopgrad.runner.shelf import Shelf, shelf

TEMPLATES = Path(__file__).parent / "templates"


def begin(folder: Path, recipe: str | None) -> list[str]:
    """Write a project into ``folder``, which is empty or not there: all of its files or none. Returns their paths.

    Raises:
        InputError: the recipe is unknown, the folder is not empty, or its name is no Python name.
        OSError: it cannot be written.
    """
    recipes = shelf().names("recipe")
    if recipe is None:
        raise InputError(f"--from: choose one of {', '.join(recipes)}")
    if recipe not in recipes:
        raise InputError(choose("--from", recipe, recipes))
    folder = folder.resolve()
    check_name(folder.name)
    made = not folder.exists()
    if made and not folder.parent.is_dir():
        raise InputError(f"{folder}: there is no folder {folder.parent}")
    if not made and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder}: {'not empty' if folder.is_dir() else 'a file'}; choose an empty folder or a new one"
        )
    files = project_files(shelf(), recipe, folder.name)
    draft = folder / ".new"
    try:
        for path, text in files.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
        for entry in draft.iterdir():
            entry.rename(folder / entry.name)
        draft.rmdir()
    except BaseException:
        shutil.rmtree(folder if made else draft, ignore_errors=True)
        raise
    return sorted(files)


def check_name(name: str) -> None:
    """Refuse what is not the name of a Python project.

    Raises:
        InputError: with a name near to it that is one.
    """

    def fits(name: str) -> bool:  # as a module, and as a distribution in pyproject.toml
        return bool(re.fullmatch(r"[A-Za-z](\w*[A-Za-z0-9])?", name, re.ASCII)) and not keyword.iskeyword(name)

    if not fits(name):
        near = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lstrip("_0123456789")
        hint = f"; did you mean {near}?" if fits(near) else ""
        raise InputError(f"{name}: not a Python name; choose one of the letters a-z, digits and _{hint}")


def project_files(source: Shelf, recipe: str, name: str) -> dict[str, str]:
    """The text of each file of a project called ``name``, by its path in it."""
    configs = source.needed_configs(recipe)
    targets = [target for group, names in configs.items() for each in names for target in source.targets(group, each)]
    code = [source.path(file) for file in source.needed_modules(targets)]
    yaml = [f"configs/{group}/{each}.yaml" for group, names in configs.items() for each in names]
    files = {path: source.text(path) for path in ("train.py", "configs/train.yaml", *code, *yaml)}
    for group in ("recipe", "data"):
        files["configs/train.yaml"] = re.sub(
            rf"^(  - {group}:) \w+", rf"\1 {configs[group][0]}", files["configs/train.yaml"], flags=re.M
        )
    main = source.module(source.recipe_class(recipe).rpartition(".")[0])
    assert main is not None
    declared, changes = declared_in(main), one_at_a_time(main)
    broken = [overrides for key, overrides in changes.items() if f"stop.{key}" in contract_keys(main)]
    words = {
        "name": name,
        "recipe": recipe,
        "version": stopgrad.__version__,
        "file": source.path(main),
        "summary": declared.summary,
        "arms": arms(changes),
        "quick": json.dumps(["trainer=smoke", *declared.small]),
        "flipped": json.dumps([" ".join(overrides) for overrides in broken[:1]]),
    }
    if not configs["compare"]:
        files[f"configs/compare/{recipe}.yaml"] = filled("compare.yaml", words)
    files[f"tests/test_{recipe}.py"] = filled("test_recipe.py", words)
    files["pyproject.toml"] = filled("pyproject.toml", words)
    files[".gitignore"] = filled("gitignore", words)
    compare = (configs["compare"] or [recipe])[0]
    words |= {
        "commands": commands(recipe, compare, list(changes.values())[:1]),
        "choices": choices(main, source.text(f"configs/recipe/{recipe}.yaml")),
        "tree": tree([*files, "README.md"]),
    }
    return files | {"README.md": filled("README.md", words)}


def filled(template: str, words: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)


def one_at_a_time(main: Path) -> dict[str, list[str]]:
    """For each boundary and switch of a recipe's module, the overrides that turn it over, with what else they need."""
    declared = declared_in(main)
    other, needs = declared.turned_over(), declared.needs
    return {name: [f"stop.{name}={choice}", *needs.get(f"stop.{name}", [])] for name, choice in other.items()}


def contract_keys(main: Path) -> set[Any]:
    """What the contracts of a recipe's module name, such as ``stop.fakes``."""
    nodes = ast.walk(ast.parse(main.read_text(encoding="utf-8")))
    return {
        key.value for node in nodes if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)
    }


def arms(changes: dict[str, list[str]]) -> str:
    """An arm for each change, as YAML for a comparison."""
    named = {
        overrides[0].removeprefix("stop.").replace("=", "-"): OmegaConf.from_dotlist(overrides)
        for overrides in changes.values()
    }
    return indent(OmegaConf.to_yaml(OmegaConf.create(named)), "    ").rstrip()


def commands(recipe: str, compare: str, changes: list[list[str]]) -> str:
    """What a user types first, with a word to each."""
    best = f"runs/{recipe}/default/seed-0/checkpoints/best.ckpt"
    said = {
        "trainer=smoke": "a few steps of everything: does it run?",
        "": "the whole training",
        **{" ".join(change): "one choice turned over: what does the run say?" for change in changes},
        f"-m compare={compare}": "named arms, three seeds each, and their comparison",
        f"mode=evaluate ckpt_path={best}": "",
        "--help": "all that can be chosen",
    }
    lines = [(f"python train.py {arguments}".rstrip(), remark) for arguments, remark in said.items()]
    lines += [(f"python -m stopgrad compare runs/{recipe}/sweep-TIME", "the comparison again"), ("pytest", "")]
    return "\n".join(f"{command:<50}  # {remark}" if remark else command for command, remark in lines)


def choices(main: Path, config: str) -> str:
    """A table of the recipe's boundaries and switches; what they are is told by the comments of its config."""
    declared = declared_in(main)
    section = config.partition("\nstop:\n")[2].partition("\n\n")[0]
    about = dict(re.findall(r"^  (\w+): [^#\n]*# (.+)$", section, flags=re.M))
    rows = ["| | choices, the default first | |", "|---|---|---|"]
    for name, legal in {**declared.boundaries, **declared.switches}.items():
        remarks = [about.get(name), f"without it: {declared.without[name]}" if name in declared.without else None]
        spelled = " ".join(f"`{spelling(choice)}`" for choice in legal)
        said = "; ".join(filter(None, remarks)).replace("|", "\\|")
        rows.append(f"| `stop.{name}` | {spelled} | {said} |")
    return "\n".join(rows)


def tree(paths: list[str]) -> str:
    """What is where in a project, a line for each folder."""
    about = {
        "": "a run, and what it needs",
        "configs": "the root of every run: which recipe is the default",
        "configs/compare": "named arms, with -m",
        "configs/data": "data that the recipe can use",
        "configs/recipe": "stop:, the method's arguments, the length of a run",
        "recipes": "the method",
        "recipes/parts": "what it stands on",
        "tests": "pytest",
    }
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, _, file = path.rpartition("/")
        if not file.startswith((".", "__")):
            folders.setdefault(folder, []).append(file)
    lines = []
    for folder, files in sorted(folders.items()):
        place = f"{folder}/{files[0]}" if len(files) == 1 else f"{folder or '.'}/"
        rest = "" if len(files) == 1 else ", ".join(sorted(files))
        lines.append((place, ": ".join(filter(None, [about.get(folder, ""), rest]))))
    width = max(len(place) for place, _ in lines)
    return "\n".join(f"{place:<{width}}  {remark}" for place, remark in lines)
