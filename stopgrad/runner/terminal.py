"""What a person sees of a run while it goes."""

from __future__ import annotations

import sys

from lightning.pytorch.callbacks import Callback, TQDMProgressBar


def progress_bar() -> Callback | None:
    """Lightning's bar where a person watches, and none where output goes to a file."""
    return TQDMProgressBar(refresh_rate=20) if sys.stderr.isatty() else None
