"""The recipes that come with stopgrad, read as text, and what each of them needs.

In a wheel they lie in ``stopgrad/shelf``, in a checkout beside the package. What a recipe needs follows from its
imports and from every ``_target_`` of its configs; none of it is run.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import stopgrad


@cache
def parsed(text: str) -> dict[Any, Any]:
    """A config as its file says it, once for each text; not to be changed."""
    config = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(config, dict)
    return config


@dataclass(frozen=True)
class Shelf:
    """A folder with ``recipes/``, ``configs/`` and ``train.py``."""

    folder: Path

    def text(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def path(self, file: Path) -> str:
        """Of a file on the shelf, as it will be in a project."""
        return file.relative_to(self.folder).as_posix()

    # ---- configs

    def names(self, group: str) -> list[str]:
        """The configs of a group, such as ``recipe``."""
        return sorted(file.stem for file in (self.folder / "configs" / group).glob("*.yaml"))

    def config(self, group: str, name: str) -> dict[Any, Any]:
        return parsed((self.folder / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8"))

    def line(self, group: str, name: str) -> list[str]:
        """A config, and after it those of its group that it begins with, as in ``defaults: [star]``."""
        bases = [each for each in self.config(group, name).get("defaults", []) if each in self.names(group)]
        return [name, *(each for base in bases for each in self.line(group, base))]

    def configs(self, group: str, name: str) -> list[dict[Any, Any]]:
        return [self.config(group, each) for each in self.line(group, name)]

    def choice(self, group: str, name: str, of: str) -> str | None:
        """What a config chooses in another group: ``replay`` where it says ``override /data: replay``."""
        defaults = [
            each for ancestor in self.line(group, name) for each in self.config(group, ancestor).get("defaults", [])
        ]
        return next((each[f"override /{of}"] for each in defaults if f"override /{of}" in each), None)

    def targets(self, group: str, name: str) -> list[str]:
        """Every ``_target_`` of a config and those that it begins with."""

        def below(node: Any) -> Iterator[str]:
            if isinstance(node, dict):
                yield from (value for key, value in node.items() if key == "_target_")
            if isinstance(node, (dict, list)):
                for child in node.values() if isinstance(node, dict) else node:
                    yield from below(child)

        return [target for config in self.configs(group, name) for target in below(config)]

    def recipe_class(self, name: str) -> str:
        """What a config of a recipe builds, such as ``recipes.gan.GAN``."""
        sections = [config.get("recipe", {}) for config in self.configs("recipe", name)]
        return next(section["_target_"] for section in sections if "_target_" in section)

    def data_class(self, name: str) -> str:
        return next(config["_target_"] for config in self.configs("data", name) if "_target_" in config)

    def needed_configs(self, recipe: str) -> dict[str, list[str]]:
        """By group, the configs that a project of the recipe needs: its own, its data and its comparisons.

        With its data, which stand first, come all of the same class: they can take their place.
        """
        compares = [name for name in self.names("compare") if self.choice("compare", name, "recipe") == recipe]
        usual = self.choice("recipe", recipe, "data") or self.default("data")
        used = [usual, *(self.choice("compare", name, "data") or usual for name in compares)]
        classes = {self.data_class(name) for name in used}
        used += [name for name in self.names("data") if self.data_class(name) in classes]
        chosen = {"recipe": [recipe], "data": used, "compare": compares}
        return {
            group: list(dict.fromkeys(each for name in names for each in self.line(group, name)))
            for group, names in chosen.items()
        }

    def default(self, group: str) -> str:
        """What ``configs/train.yaml`` chooses in a group."""
        return next(each[group] for each in self.config("", "train")["defaults"] if group in each)

    # ---- code

    def module(self, name: str) -> Path | None:
        """The file of a module or package such as ``recipes.parts.images``."""
        path = self.folder / name.replace(".", "/")
        return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)

    def needed_modules(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules, or of the classes in them, and of all that they import from ``recipes``."""
        found, waiting = set(), list(names)
        while waiting:
            name = waiting.pop()
            if name.partition(".")[0] != "recipes":
                continue
            package = name.rpartition(".")[0]
            waiting.append(package)  # or the module that the class is in
            file = self.module(name)
            if file is not None and file not in found:
                found.add(file)
                waiting += imports(file, name if file.name == "__init__.py" else package)
        return sorted(found)


def shelf() -> Shelf:
    """What there is to begin a project with."""
    package = Path(stopgrad.__file__).parent
    inside = package / "shelf"
    return Shelf(inside if inside.is_dir() else package.parent)


def imports(file: Path, package: str) -> Iterator[str]:
    """Every name that a file of ``package`` imports, wherever in it, with its module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)
