"""What a config may start and where it may write; SECURITY.md says what is promised.

A ``_target_`` names what Hydra calls. Here it may name classes of ours, torch, torchvision, timm and Lightning of the
kinds that a config composes: networks, optimisers, callbacks, loggers and the like. Everything else, such as
``os.system``, ``torch.hub.load`` or ``torch.serialization.os.system``, is refused before it is called, unless the
command line allows it by name: ``allow=[package]``. A file cannot allow anything.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from stopgrad.runner.errors import InputError
from stopgrad.runner.hydra_internals import PLUGINS, before_targets
from stopgrad.runner.names import as_typed

PACKAGES = ("recipes", "stopgrad", "torch", "torchvision", "timm", "lightning")
KINDS = {  # what a config composes; the full names, so that nothing is imported to compare
    "torch.nn.modules.module.Module",
    "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    "lightning.pytorch.callbacks.callback.Callback",
    "lightning.pytorch.loggers.logger.Logger",
    "lightning.pytorch.profilers.profiler.Profiler",
    "lightning.pytorch.strategies.strategy.Strategy",
    "lightning.pytorch.trainer.trainer.Trainer",
    "hydra.experimental.callback.Callback",
}
FUNCTIONS = ("stopgrad.runner.terminal.progress_bar", "timm.create_model", "torchvision.models")
ENVIRONMENTS = ("data.id", "recipe.environment")  # gymnasium imports the module of an id such as module:Name-v0
HYDRA = (PLUGINS, "hydra_plugins")  # its launchers and sweepers


def allowed_by(overrides: Sequence[str]) -> list[str]:
    """The packages that the command line allows: ``allow=[mypackage,other]`` or ``allow=mypackage``."""
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key == "allow":
            found += [name.strip() for name in value.strip("[]'\"").split(",")]
    return [name for name in found if name]


def targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, target) of every ``_target_`` below ``node``, as the interpolations resolve."""
    if isinstance(node, DictConfig):
        for name in node:
            path = f"{key}.{name}" if key else str(name)
            if OmegaConf.is_missing(node, name) or path == "hydra.help":  # a text, which takes a while to write
                continue
            value = node[name]
            if name == "_target_":
                yield path, str(value)
            else:
                yield from targets(value, path)
    elif isinstance(node, ListConfig):
        for index, value in enumerate(node):
            yield from targets(value, f"{key}[{index}]")


def check_target(key: str, target: str, allowed: Sequence[str] = ()) -> None:
    """Refuse a ``_target_`` that could run anything.

    Raises:
        InputError: with the key, the target and how to allow it.
    """
    if any(target == name or target.startswith(f"{name}.") for name in (*allowed, *HYDRA)):
        return
    package = target.partition(".")[0]
    if package not in PACKAGES or not _composes(_find(key, target), target):
        raise InputError(
            f"{key}={target}: refused, it could run anything; choose a network, optimiser, callback or the like "
            f"of {', '.join(PACKAGES)}, or allow it by name: allow=[{package}]"
        )


def _composes(found: Any, target: str) -> bool:
    """Whether ``found`` is of the kinds that a config composes, and was defined in one of our packages."""
    if not isinstance(found, type):
        return any(target == name or target.startswith(f"{name}.") for name in FUNCTIONS) and not isinstance(
            found, ModuleType
        )
    line = {f"{each.__module__}.{each.__qualname__}" for each in found.__mro__}
    return found.__module__.partition(".")[0] in PACKAGES and bool(line & KINDS) and not _runs_code(found)


def _runs_code(found: type) -> bool:
    """Whether it is one of torch's networks that run what they are given."""
    if "torch" not in sys.modules:  # then it is none of torch's
        return False
    from torch import fx, jit

    return issubclass(found, (fx.GraphModule, jit.ScriptModule))


def _find(key: str, target: str) -> Any:
    """The object at the dotted path, or None where the path leaves its package, as ``torch.serialization.os`` does.

    Raises:
        InputError: there is nothing at this path.
    """
    package, *names = target.split(".")
    path = package
    try:
        found: Any = importlib.import_module(package)
        for name in names:
            path += f".{name}"
            inside = isinstance(found, ModuleType) and hasattr(found, "__path__") and not hasattr(found, name)
            found = importlib.import_module(path) if inside else getattr(found, name)
            if isinstance(found, ModuleType) and found.__name__.partition(".")[0] != package:
                return None
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}={target}: {error}") from None
    return found


def check_paths(config: DictConfig, folder: str) -> None:
    """Refuse a path by which a run would write outside of its directory ``folder``. What is read, the user chooses.

    Raises:
        InputError: with the key.
    """
    run = Path(folder).resolve()
    for section in ("callbacks", "logger", "trainer"):
        for key, value in _strings(config[section], section):
            path = Path(value)
            elsewhere = value.startswith("~") or "://" in value
            if elsewhere or not (run / path).resolve().is_relative_to(run):
                raise InputError(f"{key}={value}: leads out of the run directory {folder}")


def _strings(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DictConfig):
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from _strings(node[name], f"{key}.{name}")
    elif isinstance(node, ListConfig):
        for index, value in enumerate(node):
            yield from _strings(value, f"{key}[{index}]")
    elif isinstance(node, str):
        yield key, node


def check_safety(config: DictConfig, hydra: DictConfig) -> None:
    """Refuse, before anything of it is imported or called, a config that could run code or write where it should not.

    Raises:
        InputError: with the key.
    """
    allowed = allowed_by(as_typed(hydra))
    if set(config.allow or ()) - set(allowed):
        raise InputError(f"allow={config.allow}: a file cannot allow anything; write it on the command line")
    for key, target in targets(config):
        check_target(key, target, allowed)
    for key in ENVIRONMENTS:
        module, colon, _ = str(OmegaConf.select(config, key)).rpartition(":")
        if colon and module not in allowed:
            raise InputError(f"{key}={module}:...: refused, it could run anything; allow it by name: allow=[{module}]")
    if hydra.job.env_set:
        raise InputError("hydra.job.env_set: refused, it could run anything; set variables in the shell")


def guard() -> None:
    """Hold Hydra's own section to the same rule: its callbacks and launchers are called before any check of ours."""
    before_targets(lambda key, target: check_target(key, target, allowed_by(sys.argv[1:])))
