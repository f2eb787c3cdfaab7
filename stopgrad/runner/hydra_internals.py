"""All that we use of Hydra and its OmegaConf beyond what they make public: nothing private of them stands elsewhere.

Tried with Hydra 1.3.8, OmegaConf 2.3.1. Where a new version breaks one of these, conf_tests/test_private.py says which,
and what no longer works.
"""

from __future__ import annotations

import functools
import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

PLUGINS = "hydra._internal.core_plugins"
"""The package of Hydra's own launchers and sweepers, as its config names them in ``_target_``."""


def product(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each run of a sweep, as ``BasicSweeper.split_arguments`` multiplies parsed ones out."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (runs,) = BasicSweeper.split_arguments(list(overrides), None)
    return [list(run) for run in runs]


def read_by_libyaml() -> None:
    """Let OmegaConf's loader, with its rules for numbers and for keys that stand twice, take its nodes from libyaml.

    That is a parser in C; PyYAML's own is the same in Python. What libyaml refuses PyYAML's own reads again, so that it
    is refused in the same words. (libyaml itself is more patient: a tab may stand between words.)
    """
    from omegaconf import _utils

    original = _utils.get_yaml_loader
    if not yaml.__with_libyaml__ or hasattr(original, "replaces"):
        return
    from yaml.cyaml import CParser  # pyright: ignore[reportAttributeAccessIssue]

    @functools.cache
    def get_yaml_loader() -> Any:
        class Loader(CParser, original()):  # what both have, the parser in C gives
            def __init__(self, stream: Any) -> None:
                self.text = stream if isinstance(stream, str) else stream.read()
                self.file = getattr(stream, "name", None)
                CParser.__init__(self, self.text)
                SafeConstructor.__init__(self)
                Resolver.__init__(self)

            def get_single_data(self) -> Any:
                try:
                    return super().get_single_data()
                except yaml.YAMLError:
                    again: Any = self.text
                    if self.file is not None:
                        again = io.StringIO(self.text)
                        again.name = self.file  # the message names it
                    return original()(again).get_single_data()

        return Loader

    get_yaml_loader.replaces = original  # pyright: ignore[reportAttributeAccessIssue]
    _utils.get_yaml_loader = get_yaml_loader


def compose_once(loader: Any) -> None:
    """Let a sweep compose each of its configs once, not three times: to check it, to validate it, and to run it.

    All three ask ``ConfigLoaderImpl.load_configuration``, through ``load_sweep_config``; each is given a copy. What
    runs have of files is composed once for all that choose the same ones, and each sets its values in it.
    """
    compose = loader.load_configuration
    kept: dict[str, bytes] = {}  # 20 kB each

    def copied(arguments: dict[str, Any], make: Callable[..., Any]) -> Any:
        key = repr(list(arguments.items()))
        if key not in kept:
            kept[key] = pickle.dumps(make(**arguments))
        return pickle.loads(kept[key])

    def from_files_once(**arguments: Any) -> Any:
        parsed, values, others = _values(loader, arguments["config_name"], arguments["overrides"])
        config = copied(arguments | {"overrides": others}, compose)
        return _with_values(loader, config, values, parsed) if values else config

    @functools.wraps(compose)
    def composed(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(compose).bind(*args, **kwargs)
        bound.apply_defaults()
        return copied(bound.arguments, from_files_once)

    loader.load_configuration = composed


def _values(loader: Any, config_name: str, overrides: list[str]) -> tuple[list[Any], list[Any], list[str]]:
    """All overrides, parsed; those of them that set values, which choose no file; the others, as they stand."""
    parsed, repository = loader._parse_overrides_and_create_caching_repo(config_name, overrides)
    values, others = [], []
    for each in parsed:
        group = repository.group_exists(each.key_or_group)
        if each.is_sweep_override() or (group and isinstance(each.value(), dict)):
            return parsed, [], overrides
        chooses = group or each.is_hydra_override() or each.package is not None
        others.append(each.input_line) if chooses else values.append(each)
    return parsed, values, others


def _with_values(loader: Any, config: Any, values: list[Any], parsed: list[Any]) -> Any:
    """The config with these values, ended as ``ConfigLoaderImpl`` ends one."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    loader._apply_overrides_to_config(values, config)
    job, task = config.hydra.job, [each for each in parsed if not each.is_hydra_override()]
    config.hydra.overrides.task = [each.input_line for each in task]
    job.override_dirname = get_overrides_dirname(overrides=task, **job.config.override_dirname)
    return config


def before_targets(check: Callable[[str, str], None]) -> None:
    """Call ``check(key, target)`` before Hydra resolves a ``_target_``: in ``_resolve_target``, by which all go.

    The first check stays, for the life of the process.
    """
    from hydra._internal.instantiate import _instantiate2

    if getattr(_instantiate2._resolve_target, "checked", False):
        return
    resolve_target = _instantiate2._resolve_target

    def resolve(target: Any, full_key: str) -> Any:
        if isinstance(target, str):
            check(f"{full_key}._target_".lstrip("."), target)
        return resolve_target(target, full_key)

    resolve.checked = True  # pyright: ignore[reportFunctionMemberAccess]
    _instantiate2._resolve_target = resolve
