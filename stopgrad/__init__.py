"""stopgrad: named switches for stop-gradients, and the proof of where each loss's gradient goes.

Needs torch alone. Names are imported when they are first used, so that what reads only the declarations
(``stopgrad.cuts.strategies``: the command line's ``--help``) does not pay for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stopgrad.cuts.boundary import Boundary as Boundary
    from stopgrad.cuts.boundary import Stops as Stops
    from stopgrad.cuts.strategies import Strategy as Strategy
    from stopgrad.flow.assertion import assert_flow as assert_flow
    from stopgrad.flow.audit import audit as audit
    from stopgrad.flow.contract import FlowContract as FlowContract
    from stopgrad.flow.contract import GradientLeak as GradientLeak
    from stopgrad.flow.contract import GradientStarved as GradientStarved
    from stopgrad.flow.matrix import FlowMatrix as FlowMatrix
    from stopgrad.flow.values import CutSite as CutSite

__version__ = "0.1.0"

_HOME = {
    "Boundary": "stopgrad.cuts.boundary",
    "Stops": "stopgrad.cuts.boundary",
    "CutSite": "stopgrad.flow.values",
    "FlowContract": "stopgrad.flow.contract",
    "FlowMatrix": "stopgrad.flow.matrix",
    "GradientLeak": "stopgrad.flow.contract",
    "GradientStarved": "stopgrad.flow.contract",
    "Strategy": "stopgrad.cuts.strategies",
    "assert_flow": "stopgrad.flow.assertion",
    "audit": "stopgrad.flow.audit",
    "load_ipython_extension": "stopgrad.watch.notebook",
    "unload_ipython_extension": "stopgrad.watch.notebook",
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
