"""The resolvers that the configs use: names of run directories, the arms of a comparison, the text of ``--help``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from stopgrad.cuts.strategies import spelling
from stopgrad.runner.declared import Declaration, declarations
from stopgrad.runner.project import configs

# Overrides that do not tell one arm from another, or that stand elsewhere in the path.
UNNAMED = re.compile(r"(recipe|seed|mode|ckpt_path|cache|allow|compare|logger|trainer|callbacks|hydra)(=|[./@].*)$")
ELSEWHERE = re.compile(r"(seed|compare|arm|hydra)(=|[./@].*)$")
COMMON: set[str] | None = None  # in a sweep, the overrides that all of its runs share


def _hydra(root: DictConfig) -> DictConfig:
    """Hydra's own section, which the config of a run that has begun no longer holds."""
    return root.hydra if "hydra" in root else HydraConfig.get()  # pyright: ignore[reportReturnType]


def as_typed(hydra: Any) -> list[str]:
    """The overrides of the command line as they stand there: an interpolation among them is not resolved."""
    return OmegaConf.to_container(hydra.overrides.task, resolve=False)  # pyright: ignore[reportReturnType]


def recipe_name(*, _root_: DictConfig) -> str:
    """The config's name of the recipe, such as ``gan``."""
    return _hydra(_root_).runtime.choices.recipe


def arm_name(*, _root_: DictConfig) -> str:
    """The comparison's name for the arm, else what was overridden, as in ``fakes-none_zero_grad-late``.

    In a sweep, what tells its runs apart: nothing that all of them share.
    """
    if _root_.arm is not None:
        return str(_root_.arm)
    overrides = as_typed(_hydra(_root_))
    named = [o for o in overrides if o.startswith("recipe.") or not UNNAMED.match(_key(o))]
    if COMMON is not None:
        named = [o for o in overrides if o not in COMMON and not ELSEWHERE.match(_key(o))] or named
    words = [f"{_key(o)[:-1].rpartition('.')[2]}-{o.partition('=')[2]}" for o in named]
    if _root_.mode == "evaluate" and _root_.ckpt_path is not None:
        words.insert(0, f"evaluate-{_checkpoint_name(Path(_root_.ckpt_path))}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words))[:120] or "default"


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0] + "="


def _checkpoint_name(file: Path) -> str:
    """``default-seed-0-best`` of ``runs/gan/default/seed-0/checkpoints/best.ckpt``."""
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return "-".join([*run.parts[-2:], file.stem])


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


def engine(accelerator: str) -> str:
    """The strategy of ``trainer=ddp``: FSDP2 on GPUs, on CPUs a flat exchange, which costs small networks less."""
    import torch

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    return f"stopgrad.runner.{'sharding.FullyShard' if on_gpu else 'averaging.AveragedGradients'}"


def help_text(arguments: Sequence[str] = ()) -> str:
    """What ``python train.py arguments... --help`` prints: all recipes, or of ``recipe=NAME`` what may be chosen."""
    recipes = declarations()
    given = next((a.removeprefix("recipe=") for a in arguments if a.startswith("recipe=")), "")
    asked = [name for name in given.split(",") if name in recipes]
    lines = ["Train a recipe in which every stop-gradient is a named switch.", ""]
    for name in asked:
        lines += [*_choices(name, recipes[name]), ""]
    if not asked:
        lines += ["Recipes; python train.py recipe=NAME --help tells of one what may be chosen:", ""]
        width = max(map(len, recipes), default=0)
        for name, declared in recipes.items():
            said = f"cannot be used: {declared}" if isinstance(declared, str) else declared.pattern
            lines += wrap(said, 120, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
        asked = [*recipes]
        lines.append("")
    lines += [
        "Other choices:",
        *(f"{name}: {', '.join(options)}" for name, options in groups().items()),
        "",
        "Examples:",
        *(f"  python train.py {words}" for words in _examples({name: recipes[name] for name in asked})),
    ]
    return "\n".join(lines)


def _choices(name: str, declared: Declaration | str) -> list[str]:
    """Of one recipe: its pattern, and each boundary and switch with its choices."""
    if isinstance(declared, str):
        return [f"recipe={name}", f"    cannot be used: {declared}"]
    lines = [f"recipe={name}", f"    {declared.summary}", f"    {declared.paper}", ""]
    lines.append("    The first choice is the default; below, what happens without it, or with the wrong choice.")
    for section, choices in (("boundary", declared.boundaries), ("switch", declared.switches)):
        for key, legal in choices.items():
            lines.append(f"    {section:<9}stop.{key}={'|'.join(map(spelling, legal))}")
            lines += [f"{'':13}{declared.without[key]}"] if key in declared.without else []
    return lines


def _examples(recipes: Mapping[str, Declaration | str]) -> Iterator[str]:
    """Commands that work in this project: of the recipe that it runs by default, or its first."""
    flips = {
        name: (key, legal)
        for name, declared in recipes.items()
        if isinstance(declared, Declaration)
        for key, legal in list(declared.boundaries.items())[:1]
    }
    name = "gan" if "gan" in flips else next(iter(flips), None)
    if name is not None:
        key, legal = flips[name]
        other = "none" if legal[0] != "none" else legal[1]
        yield f"recipe={name} stop.{key}={other}"
        yield f"-m recipe={name} stop.{key}={legal[0]},{other} seed=0,1,2"
        yield f"mode=evaluate recipe={name} ckpt_path=runs/{name}/default/seed-0/checkpoints/best.ckpt"
    comparisons = groups().get("compare", [])
    for comparison in [name] if name in comparisons else comparisons[:1]:
        yield f"-m compare={comparison}"
    yield "--cfg job      the whole config, every key of which can be overridden"


def groups() -> dict[str, list[str]]:
    """The options of each config group beside ``recipe`` and ``hydra``: the project's own and those of all projects."""
    found: dict[str, set[str]] = {}
    for folder in (configs(), Path(__file__).parent / "configs"):
        for file in folder.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(options) for name, options in sorted(found.items()) if name not in ("recipe", "hydra")}


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    resolvers: list[Any] = [recipe_name, arm_name, free_path, arm_names, engine]
    for resolver in resolvers:
        cached = resolver is free_path  # the directory exists once the run has begun: do not name a second one
        OmegaConf.register_new_resolver(resolver.__name__, resolver, use_cache=cached, replace=True)
