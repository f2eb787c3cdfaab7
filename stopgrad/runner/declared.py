"""What recipes declare, read from their source without running it: no torch, so that ``--help`` answers at once."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from stopgrad.cuts.strategies import TAKES_FACTOR, stops
from stopgrad.runner.errors import InputError, one_line
from stopgrad.runner.project import configs


@dataclass(frozen=True)
class Declaration:
    """What one recipe says of itself. Each field but ``summary`` is a literal of that name, in capitals, in its module.

    Attributes:
        summary: the first line of its docstring.
        paper: short references.
        boundaries: legal strategies of each boundary, the paper's choice first.
        switches: legal values of each switch, the paper's choice first.
        metrics: what a comparison judges by: ``goal``, ``margin``, and where there are any ``broken_above`` and
            ``broken_below``.
        without: what happens without each boundary or switch, or with the wrong choice.
        refuses: words of the refusal, PyTorch's or ours, by the override that meets it.
        needs: the overrides without which a boundary or switch (``stop.NAME``) cannot be flipped.
        exempt: why a check of the conformance suite is not made, by the check's name (CONTRIBUTING.md lists them).
        small: overrides with which a run takes a second, on two ranks too.
    """

    summary: str = ""
    paper: str = ""
    boundaries: dict[str, list[str]] = field(default_factory=dict)
    switches: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)
    needs: dict[str, list[str]] = field(default_factory=dict)
    exempt: dict[str, str] = field(default_factory=dict)
    small: list[str] = field(default_factory=list)

    @property
    def pattern(self) -> str:
        """The sentence behind the recipe's name."""
        return self.summary.partition(": ")[2] or self.summary

    @property
    def default_stop(self) -> dict[str, str]:
        """The paper's choices."""
        return {name: legal[0] for name, legal in {**self.boundaries, **self.switches}.items()}

    def turned_over(self) -> dict[str, str]:
        """By name, another choice: what by default stops passes, what passes stops; of a switch its second choice.

        A boundary at which that is not legal, or refused, has none.
        """
        found = {}
        for name, legal in self.boundaries.items():
            plain = [c for c in legal if c not in TAKES_FACTOR and f"stop.{name}={c}" not in self.refuses]
            other = [choice for choice in plain if stops(choice) != stops(legal[0])]
            found |= {name: other[0]} if other else {}
        return found | {name: legal[1] for name, legal in self.switches.items()}


LITERALS = {each.name.upper(): each.name for each in fields(Declaration) if each.name != "summary"}


def declaration(target: str) -> Declaration:
    """The declaration in the module of ``target``, such as ``recipes.gan.GAN``.

    Raises:
        InputError: there is no such module, it is no Python, or what it declares is no literal.
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
    """The declaration in a recipe's file.

    Raises:
        InputError: it is no Python, or what it declares is no literal.
    """
    try:
        tree = ast.parse(file.read_text(), file.name)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    found = {}
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if name in LITERALS:
                try:
                    found[LITERALS[name]] = ast.literal_eval(value)
                except ValueError:
                    raise InputError(f"{file}: {name} is read without being run; write it as a literal") from None
    return Declaration((ast.get_docstring(tree) or "").partition("\n")[0], **found)


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


def recipe_files(folder: Path) -> dict[str, list[str]]:
    """The configs in ``folder``/recipe by the file of their recipe, that of its own name first.

    Such as ``{"td": ["td", "td_asplit"]}``.
    """
    found: dict[str, list[str]] = {}
    for config in sorted((folder / "recipe").glob("*.yaml")):
        target = str(OmegaConf.select(OmegaConf.load(config), "recipe._target_"))
        found.setdefault(target.split(".")[-2], []).append(config.stem)
    return {file: sorted(names, key=lambda name: (name != file, name)) for file, names in sorted(found.items())}
