"""What there is to test: recipes, their configs and comparisons, and what each declares. No list is kept anywhere."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from conf_tests.helpers import ROOT, config
from stopgrad.cuts.strategies import stops
from stopgrad.runner.check import pinned
from stopgrad.runner.declared import Declaration, declared_in, recipe_configs
from stopgrad.runner.hydra_internals import product

RECIPES = sorted(file.stem for file in (ROOT / "recipes").glob("*.py") if file.stem != "__init__")
CONFIGS = {name: each.recipe._target_.split(".")[1] for name, each in recipe_configs().items()}  # -> its recipe
COMPARES = sorted(file.stem for file in (ROOT / "configs" / "compare").glob("*.yaml"))
FACTOR = {"scale": "scale:0.5", "reverse": "reverse:1"}
CHECKS = {  # what a recipe may be exempt from, with its reason
    "picture": "its page shows a picture",
    "cuts": "all ways to cut end with the same weights",
    "resume": "a resumed run ends with the weights of one that was left alone",
    "ranks": "two ranks with half the batch each train as one process does",
}


@functools.cache
def declared(config_name: str) -> Declaration:
    """What the recipe of this config declares."""
    return declared_in(ROOT / "recipes" / f"{CONFIGS[config_name]}.py")


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """:func:`config`, each once. It is shared: change a copy."""
    return config(*overrides)


def changed(whole: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy with these overrides of single keys, sooner than Hydra would compose it anew."""
    copy = OmegaConf.merge(whole, {})
    assert isinstance(copy, DictConfig)
    with open_dict(copy):
        copy.merge_with_dotlist(list(overrides))
    return copy


def choices(config_name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Every choice of every boundary and switch but the default: name, choice, the overrides that make it."""
    of = declared(config_name)
    for name, legal in {**of.boundaries, **of.switches}.items():
        for kind in legal[1:]:
            choice = FACTOR.get(kind, kind) if name in of.boundaries else kind
            yield name, choice, [*of.needs.get(f"stop.{name}", []), f"stop.{name}={choice}"]


def refusal(of: Declaration, overrides: Sequence[str]) -> str | None:
    """The declared words with which these overrides are refused, if they are."""
    return next((words for override, words in of.refuses.items() if override in overrides), None)


@functools.cache
def recipe_of(compare: str) -> str:
    """The config of the recipe whose arms the comparison names."""
    lines = OmegaConf.load(ROOT / "configs" / "compare" / f"{compare}.yaml").defaults
    (name,) = [line["override /recipe"] for line in lines if "override /recipe" in line]
    return name


@functools.cache
def arms(compare: str, small: bool = True) -> dict[str, DictConfig]:
    """The config of each arm, in the small sizes that the recipe declares or its own; the reference comes first.

    They are shared: change a copy.
    """
    whole = composed(f"compare={compare}", *(declared(recipe_of(compare)).small if small else ()))
    reference = whole.compare.reference
    names = [reference, *(name for name in whole.compare.arms if name != reference)]
    return {name: pinned(changed(whole, [f"arm={name}"])) for name in names}


def stop_overrides(arm: DictConfig) -> list[str]:
    """The arm's choices as overrides."""
    return [f"stop.{name}={choice}" for name, choice in arm.stop.items()]


def apart_from_the_cut(arm: DictConfig, boundaries: Iterable[str]) -> str:
    """All that a training depends on, but for the way in which each boundary stops a gradient, where it does."""
    plain: Any = {key: OmegaConf.to_container(arm[key], resolve=True) for key in ("recipe", "data", "trainer", "stop")}
    plain["stop"] |= {name: "stopped" for name in boundaries if stops(plain["stop"][name])}
    return str((plain, arm.seed, arm.compile))


def compositions(command: str) -> Iterator[DictConfig]:
    """The config of each run that ``python train.py ...`` starts, but of one seed."""
    overrides = [part for part in shlex.split(command, comments=True)[2:] if part != "-m" and part[:5] != "seed="]
    for run in product(OverridesParser.create().parse_overrides(overrides)):
        yield composed(*run)
