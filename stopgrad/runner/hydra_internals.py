"""All that we use of Hydra beyond what it makes public: nothing private of it stands in any other file.

Tried with Hydra 1.3.8. Where a new version breaks one of these, conf_tests/test_private.py says which, and what no
longer works.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any

PLUGINS = "hydra._internal.core_plugins"
"""The package of Hydra's own launchers and sweepers, as its config names them in ``_target_``."""


def product(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each run of a sweep, as ``BasicSweeper.split_arguments`` multiplies parsed ones out."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (runs,) = BasicSweeper.split_arguments(list(overrides), None)
    return [list(run) for run in runs]


def compose_once(loader: Any) -> None:
    """Let a sweep compose each of its configs once, not three times: to check it, to validate it, and to run it.

    ``ConfigLoaderImpl.load_configuration`` is asked by all three, with the same arguments where none is Hydra's own;
    each is given a copy.
    """
    compose = loader.load_configuration
    kept: dict[str, bytes] = {}  # 20 kB each

    @functools.wraps(compose)
    def composed(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(compose).bind(*args, **kwargs)
        bound.apply_defaults()
        key = repr(list(bound.arguments.items()))
        if key not in kept:
            kept[key] = pickle.dumps(compose(*args, **kwargs))
        return pickle.loads(kept[key])

    loader.load_configuration = composed


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
