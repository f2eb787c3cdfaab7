"""Lightning, and torch with it, imported in three quarters of the time."""

from __future__ import annotations

import gc
import sys


def import_lightning() -> None:
    """Import what builds a run, without a search for garbage among modules, now or as Python ends: all of them stay."""
    if "stopgrad.runner.build" in sys.modules:
        return
    searched = gc.isenabled()
    gc.disable()
    try:
        import stopgrad.runner.build
    finally:
        gc.freeze()
        if searched:
            gc.enable()
