"""The options of a watch, the same on the command line and in a notebook. Does not import torch."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What is asked of a watch beside its cycles.

    Attributes:
        terms: take the norms of a loss's terms, by a backward each.
        depth: so many levels of modules down.
        parts: a regular expression; parts whose name it does not match have no column.
    """

    terms: bool = False
    depth: int = 1
    parts: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace) -> Options:
        """Those that :func:`add_options` has added.

        Raises:
            ValueError: the depth is less than 1; the expression is none.
        """
        if options.depth < 1:
            raise ValueError(f"--depth {options.depth}: choose a number from 1")
        try:
            re.compile(options.parts)
        except re.error as error:
            raise ValueError(f"--parts {options.parts}: no regular expression: {error}") from None
        return cls(options.terms, options.depth, options.parts)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, default=3, help="measure the matrix on so many cycles from the first")
    parser.add_argument("--every", type=int, default=100, help="and then on every so many; 0 for none")
    parser.add_argument("--terms", action="store_true", help="take the norms of a loss's terms: a backward each")
    parser.add_argument("--depth", type=int, default=1, help="so many levels of modules down")
    parser.add_argument("--parts", metavar="REGEX", default="", help="only the parts whose name matches")
    parser.add_argument("--silence", metavar="NAME", nargs="*", default=[], help="findings that are not told")
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page")


def writable(**files: str | None) -> None:
    """Refuse files that will not be written, by the names of their options.

    Raises:
        ValueError: the folder is not there, or cannot be written; the file is a folder.
    """
    for flag, file in files.items():
        if file and Path(file).is_dir():
            raise ValueError(f"--{flag} {file}: is a folder")
        if file and not os.access(Path(file).absolute().parent, os.W_OK):
            raise ValueError(f"--{flag} {file}: the folder cannot be written")
