"""The options of ``sites`` and ``ablate``. Does not import torch."""

from __future__ import annotations

import argparse
from typing import Any


def add_site_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", metavar="N", type=int, help="end after so many optimiser steps")
    parser.add_argument("--json", metavar="FILE", help="also write the sites as JSON")


def add_options(parser: argparse.ArgumentParser) -> None:
    several: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--seeds", metavar="N,N,...", default="0", help="of torch, NumPy and random, before the script")
    parser.add_argument("--arm", metavar="NAME: SITE=STRATEGY, ...", help="this arm, and no other", **several)
    parser.add_argument("--each", action="store_true", help="beside --arm, one arm for each cut too")
    parser.add_argument("--steps", metavar="N", type=int, help="end each arm after so many optimiser steps")
    parser.add_argument("--metric", metavar="NAME", help="judge by this number", **several)
    parser.add_argument("--margin", metavar="NAME=X", help="smaller differences are none", **several)
    parser.add_argument("--broken", metavar="NAME>X", help="an arm beyond is broken", **several)
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="so many arms at once")
    parser.add_argument("--timeout", metavar="S", type=float, help="seconds after which an arm is ended")
    parser.add_argument("--out", metavar="DIR", help="where the arms go; by default runs/ablate/SCRIPT")
    parser.add_argument("--allow-writes", action="store_true", help="let the script write outside of its arm's folder")
    parser.add_argument("--json", metavar="FILE", help="also write the arms as JSON")
