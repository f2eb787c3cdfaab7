"""stopgrad: named switches for stop-gradients, and the proof of where each loss's gradient goes.

Needs torch alone. Names are imported when they are first used, so that what reads only the declarations
(``stopgrad.strategy``: the command line's ``--help``) does not pay for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stopgrad.boundary import Boundary as Boundary
    from stopgrad.boundary import Stops as Stops
    from stopgrad.contract import FlowContract as FlowContract
    from stopgrad.contract import GradientLeak as GradientLeak
    from stopgrad.contract import GradientStarved as GradientStarved
    from stopgrad.flow import assert_flow as assert_flow
    from stopgrad.flow import audit as audit
    from stopgrad.matrix import FlowMatrix as FlowMatrix
    from stopgrad.strategy import Strategy as Strategy
    from stopgrad.values import CutSite as CutSite

__version__ = "0.1.0"

_HOME = {
    "Boundary": "stopgrad.boundary",
    "Stops": "stopgrad.boundary",
    "CutSite": "stopgrad.values",
    "FlowContract": "stopgrad.contract",
    "FlowMatrix": "stopgrad.matrix",
    "GradientLeak": "stopgrad.contract",
    "GradientStarved": "stopgrad.contract",
    "Strategy": "stopgrad.strategy",
    "assert_flow": "stopgrad.flow",
    "audit": "stopgrad.flow",
}
__all__ = [
    "Boundary",
    "CutSite",
    "FlowContract",
    "FlowMatrix",
    "GradientLeak",
    "GradientStarved",
    "Stops",
    "Strategy",
    "assert_flow",
    "audit",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'stopgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
