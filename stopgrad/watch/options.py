"""The options of a watch, the same on the command line and in a notebook. Does not import torch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, default=3, help="measure the matrix on so many cycles from the first")
    parser.add_argument("--every", type=int, default=100, help="and then on every so many; 0 for none")
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
