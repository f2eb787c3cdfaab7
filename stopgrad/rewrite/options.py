"""Options that may stand before the script or after it. Does not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_script(parser: Any) -> None:
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")


def with_further(
    options: argparse.Namespace, command: str, add_options: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """The options with those that stand after the script; what follows ``--``, or is not known, is the script's."""
    given = options.arguments
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog=f"python -m stopgrad {command}", add_help=False, allow_abbrev=False)
    add_options(parser)
    options, unknown = parser.parse_known_args(given[:at], options)
    options.arguments = [*unknown, *given[at + 1 :]]
    return options
