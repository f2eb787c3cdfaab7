"""The options of ``propose``. Does not import torch."""

from __future__ import annotations

import argparse
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    cells: dict[str, Any] = {"action": "append", "default": [], "metavar": "LOSS:PART"}
    parser.add_argument("--not", dest="apart", help="the loss is not to reach this part", **cells)
    parser.add_argument("--reach", help="the loss is to reach this part", **cells)
    parser.add_argument("--contract", metavar="YAML", help="what a FlowContract asks for")
    parser.add_argument("--write", action="store_true", help="make the edits in the files")
    parser.add_argument("--json", metavar="FILE", help="also write the answer as JSON")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for each run of the script")
