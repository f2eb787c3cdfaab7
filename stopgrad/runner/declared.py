"""What recipes declare, read from their source without running it: no torch, so that ``--help`` answers at once."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from stopgrad.runner.errors import InputError, one_line
from stopgrad.runner.project import configs


@dataclass(frozen=True)
class Declaration:
    """Of one recipe: its first docstring line, the legal choices of each boundary and switch, the paper's first, and
    the metrics that a comparison judges by: ``goal``, ``margin``, and where there are any ``broken_above`` and
    ``broken_below``.
    """

    summary: str
    boundaries: dict[str, list[str]]
    switches: dict[str, list[str]]
    metrics: dict[str, dict[str, Any]]

    @property
    def default_stop(self) -> dict[str, str]:
        """The paper's choices."""
        return {name: legal[0] for name, legal in {**self.boundaries, **self.switches}.items()}


def declaration(target: str) -> Declaration:
    """The declaration in the module of ``target``, such as ``recipes.gan.GAN``.

    Raises:
        InputError: there is no such module, or it is no Python, or what it declares is no literal.
    """
    module = target.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"recipe._target_={target}: no module {module!r}; write package.module.Class")
    try:
        tree = ast.parse(Path(spec.origin).read_text(), Path(spec.origin).name)
        values = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("BOUNDARIES", "SWITCHES", "METRICS")
        }
    except (SyntaxError, ValueError) as error:
        raise InputError(f"recipe._target_={target}: cannot be read: {error}") from None
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Declaration(summary, *(values.get(name, {}) for name in ("BOUNDARIES", "SWITCHES", "METRICS")))


def declarations() -> dict[str, Declaration | str]:
    """The declaration of each of the project's recipes by name; of one that cannot be read, why, in one line."""
    found: dict[str, Declaration | str] = {}
    for file in sorted((configs() / "recipe").glob("*.yaml")):
        try:
            target = OmegaConf.select(OmegaConf.load(file), "recipe._target_")
            found[file.stem] = declaration(str(target))
        except (InputError, OmegaConfBaseException, YAMLError) as error:
            found[file.stem] = one_line(error)
    return found


def recipe_configs() -> dict[str, DictConfig]:
    """The project's ``configs/recipe/*.yaml`` by name."""
    found = {}
    for file in sorted((configs() / "recipe").glob("*.yaml")):
        config = OmegaConf.load(file)
        assert isinstance(config, DictConfig)
        found[file.stem] = config
    return found
