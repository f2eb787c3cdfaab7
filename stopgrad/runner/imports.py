"""Lightning, and torch with it, imported in two thirds of the time."""

from __future__ import annotations

import gc
import importlib
import sys

BUILD = "stopgrad.runner.build"


def import_lightning() -> None:
    """Import what builds a run without a search for garbage among modules, now or as Python ends: all of them stay."""
    if BUILD in sys.modules:
        return
    searched = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(BUILD)
    finally:
        gc.freeze()
        if searched:
            gc.enable()
