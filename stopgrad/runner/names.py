"""The resolvers that the configs use: names of run directories, the arms of a comparison, the text of ``--help``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stopgrad.cuts.strategies import spelling
from stopgrad.runner.declared import declaration, recipe_configs
from stopgrad.runner.project import configs, project
from stopgrad.runner.shelf import Shelf

# Overrides that do not tell one arm from another, or that stand elsewhere in the path.
UNNAMED = re.compile(r"(recipe|seed|ckpt_path|cache|compare|logger|trainer|callbacks|hydra)(=|[./@].*)$")


def recipe_name(*, _root_: DictConfig) -> str:
    """The config's name of the recipe, such as ``gan``."""
    return _root_.hydra.runtime.choices.recipe


def arm_name(*, _root_: DictConfig) -> str:
    """The comparison's name for the arm, else what was overridden, as in ``fakes-none_zero_grad-late``."""
    if _root_.arm is not None:
        return str(_root_.arm)
    named = []
    for override in _root_.hydra.overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if not UNNAMED.match(f"{key}=") or re.match(r"recipe\.", key):
            named.append(f"{key.rpartition('.')[2]}-{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(named))[:120] or "default"


def free_path(path: str) -> str:
    """``path``, or where it exists already the first that is free of ``path_2``, ``path_3`` and so on."""
    free, count = path, 1
    while Path(free).exists():
        count += 1
        free = f"{path}_{count}"
    return free


def arm_names(*, _root_: DictConfig) -> str:
    """The arms of the comparison, as a sweep: ``detach,no_grad,none``."""
    return ",".join(_root_.compare.arms)


def help_text() -> str:
    """What ``python train.py --help`` prints."""
    lines = ["Train a recipe in which every stop-gradient is a named switch.", "", "Recipes, and what may be chosen:"]
    lines[-1] += " the first choice is the default"
    for name, config in recipe_configs().items():
        declared = declaration(config.recipe._target_)
        lines += ["", f"recipe={name}", f"    {declared.summary}"]
        for section, choices in (("boundary", declared.boundaries), ("switch", declared.switches)):
            for key, legal in choices.items():
                lines.append(f"    {section:<9}stop.{key}={'|'.join(map(spelling, legal))}")
    lines += [
        "",
        "Other choices:",
        *(f"{name}: {', '.join(options)}" for name, options in groups().items()),
        "",
        "Examples:",
        *examples(),
    ]
    return "\n".join(lines)


def examples() -> list[str]:
    """Commands for the project's own recipe, the default one."""
    mine = Shelf(project())
    recipe = mine.default("recipe")
    declared = declaration(mine.recipe_class(recipe))
    lines = []
    for name, choice in list(declared.turned_over().items())[:1]:
        lines.append(f"recipe={recipe} stop.{name}={choice}")
        lines.append(f"-m recipe={recipe} stop.{name}={declared.default_stop[name]},{choice} seed=0,1,2")
    compares = [each for each in mine.names("compare") if mine.choice("compare", each, "recipe") == recipe]
    lines += [f"-m compare={each}" for each in compares[:1]]
    lines += [f"mode=evaluate ckpt_path=runs/{recipe}/default/seed-0/checkpoints/best.ckpt"]
    lines += ["--cfg job      the whole config, every key of which can be overridden"]
    return [f"  python train.py {line}" for line in lines]


def groups() -> dict[str, list[str]]:
    """The options of each config group beside ``recipe`` and ``hydra``: the project's own and those of all projects."""
    found: dict[str, set[str]] = {}
    for folder in (configs(), Path(__file__).parent / "configs"):
        for file in folder.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(options) for name, options in sorted(found.items()) if name not in ("recipe", "hydra")}


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    resolvers: list[Any] = [recipe_name, arm_name, free_path, arm_names, help_text]
    for resolver in resolvers:
        cached = resolver is free_path  # the directory exists once the run has begun: do not name a second one
        OmegaConf.register_new_resolver(resolver.__name__, resolver, use_cache=cached, replace=True)
