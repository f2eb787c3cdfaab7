"""Wrong input becomes one line that names the key, the value and the choices, with exit status 1 or 2."""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stopgrad.cuts.strategies import nearest
from stopgrad.runner.project import configs


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one line for them."""


@functools.cache
def wants_traceback() -> bool:
    """Whether the user asked for tracebacks; settled at the first call, before we set the variable for Hydra's sake."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


class RunFailed(RuntimeError):
    """A run had to end, by no mistake in the code; the message is one line for the user."""


def choose(key: str, value: object, choices: Iterable[str]) -> str:
    """``key=value: choose one of ...; did you mean ...?``"""
    choices = list(choices)
    return f"{key}={value}: choose one of {', '.join(choices)}{nearest(value, choices)}"


def is_input_error(error: BaseException) -> bool:
    """Whether ``error`` comes from what the user gave us, or from the machine, and not from a mistake in the code."""
    if isinstance(error, (InputError, RunFailed, HydraException, OmegaConfBaseException)):
        return True
    if isinstance(error, Exception) and raised_in(error) in ("hydra", "omegaconf", "yaml", "logging"):
        return True  # they read what the user wrote
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)


def raised_in(error: BaseException) -> str:
    """The package of the code that raised ``error``."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__) if error.__traceback__ else [(None, 0)]
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] if frame else ""


def one_line(error: BaseException) -> str:
    """The message of ``error`` as one line, with choices where the configs tell them."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if match := re.search(
        r"Could not find '(\w+)/(\S+)'.*?Available options in '\w+': (.*?)( Config search path|$)", text
    ):
        group, value, options = match.group(1, 2, 3)
        return choose(group, value, options.split())
    if match := re.search(r"Could not override '([\w.@/-]+)'", text):
        return f"{given(match[1])}: {unknown_key(match[1])}"
    if match := re.match(r"LexerNoViableAltException: (.*) \^", text):
        return f"{match[1]}: cannot be read; quote a value with special characters: key=\"'VALUE'\""
    if "Error parsing override" in text or "mismatched input" in text or "token recognition" in text:
        return f"{text.split(' See ')[0]}; write key=value"
    return text


def given(key: str) -> str:
    """The override of ``key`` as it stands on the command line."""
    return next((argument for argument in sys.argv[1:] if argument.lstrip("+~").split("=")[0] == key), key)


def unknown_key(key: str) -> str:
    """Where a key of nearly this name is, or else which keys stand beside it; the config is composed without it."""
    from hydra import compose, initialize_config_dir

    known = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "hydra")) and a != given(key)]
    try:
        with initialize_config_dir(str(configs()), version_base="1.3"):
            node = whole = compose("train", known)
    except (HydraException, OmegaConfBaseException):
        return "no such key"
    path = key.split(".")
    for name in path[:-1]:
        child = node.get(name) if name in node else None
        if not isinstance(child, DictConfig):
            break
        node = child
    names = [str(name) for name in node]
    everywhere = [known for known in flat(OmegaConf.to_container(whole)) if not known.endswith("_")]
    words = {*names, *(known.rpartition(".")[2] for known in everywhere)}
    match = difflib.get_close_matches(path[-1], words, n=1, cutoff=0.75)
    if match and match[0] not in names:
        found = [known for known in everywhere if known.rpartition(".")[2] == match[0]]
        return f"no such key; did you mean {' or '.join(found)}?"
    return f"no such key; choose one of {', '.join(names)}{nearest(path[-1], names)}"


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """A nested config by the keys that the command line knows: ``{"recipe.optimizer.lr": 0.1}``."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for name, child in node.items() for k, v in flat(child, f"{path}.{name}".lstrip(".")).items()}


def one_line_errors(main: Callable[[], None]) -> None:
    """Run ``main``; print an input error as one line on stderr and exit with status 1.

    Other exceptions keep their traceback: they are mistakes in the code, and its author needs it.
    """
    wants_traceback()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra hand its exceptions on to us
    try:
        main()
    except Exception as error:
        if wants_traceback() or not (is_input_error(error) or isinstance(error, OSError)):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
