"""``python -m stopgrad new FOLDER --from RECIPE``: a project of one's own, begun with one recipe."""

from __future__ import annotations

import json
import keyword
import re
import shutil
from pathlib import Path
from string import Template

import stopgrad
from stopgrad.cuts.strategies import spelling
from stopgrad.runner.declared import Declaration, declared_in
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
    declared = declared_in(main)
    changes = one_at_a_time(declared)
    words = {
        "name": name,
        "recipe": recipe,
        "version": stopgrad.__version__,
        "file": source.path(main),
        "summary": declared.summary,
        "quick": listed(["trainer=smoke", *declared.small]),
        "flipped": listed([" ".join(changes[key]) for key in declared.boundaries if key in changes]),
    }
    files[f"tests/test_{recipe}.py"] = filled("test_recipe.py", words)
    files["pyproject.toml"] = filled("pyproject.toml", words)
    files[".gitignore"] = filled("gitignore", words)
    words |= {
        "commands": commands(recipe, configs["compare"], list(changes.values())[:1]),
        "choices": choices(declared, source.text(f"configs/recipe/{recipe}.yaml")),
        "tree": tree([*files, "README.md"]),
    }
    return files | {"README.md": filled("README.md", words)}


def filled(template: str, words: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)


def listed(words: list[str]) -> str:
    """A Python list, on one line where there is room."""
    line = json.dumps(words)
    return line if len(line) <= 108 else json.dumps(words, indent=4).replace("\n]", ",\n]")


def one_at_a_time(declared: Declaration) -> dict[str, list[str]]:
    """For each boundary and switch, the overrides that turn it over: its own, and what else that needs."""
    other = declared.turned_over().items()
    return {name: [f"stop.{name}={choice}", *declared.needs.get(f"stop.{name}", [])] for name, choice in other}


def commands(recipe: str, compares: list[str], changes: list[list[str]]) -> str:
    """What a user types first, with a word to each."""
    best = f"runs/{recipe}/default/seed-0/checkpoints/best.ckpt"
    said = {
        "trainer=smoke": "a few steps of everything: does it run?",
        "": "the whole training",
        **{" ".join(change): "one choice turned over: what does the run say?" for change in changes},
        **{f"-m compare={name}": "named arms, three seeds each, and their comparison" for name in compares[:1]},
        f"mode=evaluate ckpt_path={best}": "",
        f"recipe={recipe} --help": "all that can be chosen, and what happens otherwise",
    }
    lines = [(f"python train.py {arguments}".rstrip(), remark) for arguments, remark in said.items()]
    lines += [(f"python -m stopgrad compare runs/{recipe}/sweep-TIME", "the comparison again"), ("pytest", "")]
    return "\n".join(f"{command:<50}  # {remark}" if remark else command for command, remark in lines)


def choices(declared: Declaration, config: str) -> str:
    """A table of the recipe's boundaries and switches; what they are is told by the comments of its config."""
    section = config.partition("\nstop:\n")[2].partition("\n\n")[0]
    about = dict(re.findall(r"^  (\w+): [^#\n]*# (.+)$", section, flags=re.M))
    rows = ["| | choices, the default first | |", "|---|---|---|"]
    for name, legal in {**declared.boundaries, **declared.switches}.items():
        remarks = [about.get(name), f"otherwise: {declared.without[name]}" if name in declared.without else None]
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
