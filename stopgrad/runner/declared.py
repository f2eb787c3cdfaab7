"""What recipes declare, read from their source without running it: no torch, so that ``--help`` answers at once."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stopgrad.cuts.strategies import TAKES_FACTOR, stops
from stopgrad.runner.errors import InputError
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

    def turned_over(self) -> dict[str, str]:
        """By name, another choice: what by default stops passes, what passes stops; of a switch its second choice.

        A boundary at which that is not legal has none.
        """
        found = {}
        for name, legal in self.boundaries.items():
            plain = [choice for choice in legal if choice not in TAKES_FACTOR]
            other = [choice for choice in plain if stops(choice) != stops(legal[0])]
            found |= {name: other[0]} if other else {}
        return found | {name: legal[1] for name, legal in self.switches.items()}


def declaration(target: str) -> Declaration:
    """The declaration in the module of ``target``, such as ``recipes.gan.GAN``.

    Raises:
        InputError: there is no such module.
    """
    module = target.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"recipe._target_={target}: no module {module!r}; write package.module.Class")
    return declared_in(Path(spec.origin))


def declared_in(file: Path) -> Declaration:
    """The declaration in the file of a recipe's module."""
    summary = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    return Declaration(summary, *literals(file, "BOUNDARIES", "SWITCHES", "METRICS"))


def literals(file: Path, *names: str) -> list[Any]:
    """The value of each of these names, such as ``BOUNDARIES``, a literal in the file; ``{}`` where it has none."""
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names
    }
    return [values.get(name, {}) for name in names]


def recipe_configs() -> dict[str, DictConfig]:
    """The project's ``configs/recipe/*.yaml`` by name."""
    found = {}
    for file in sorted((configs() / "recipe").glob("*.yaml")):
        config = OmegaConf.load(file)
        assert isinstance(config, DictConfig)
        found[file.stem] = config
    return found
