"""A script's traceback as it would be without the watch."""

from __future__ import annotations

import os
import runpy
from types import TracebackType

import torch

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that carry the script, and those by which torch hands a call to a watch."""
    frames: list[TracebackType] = []
    while traceback is not None:
        if not _is_ours(traceback):
            frames.append(traceback)
        elif len(frames) > 1 and _file(frames[-1]) == torch.overrides.__file__:
            del frames[-2:]  # the call itself follows once more
        traceback = traceback.tb_next
    for frame, following in zip(frames, [*frames[1:], None], strict=False):
        frame.tb_next = following
    return frames[0] if frames else None


def _is_ours(traceback: TracebackType) -> bool:
    return _file(traceback).startswith((_OWN, "<frozen runpy")) or _file(traceback) == runpy.__file__


def _file(traceback: TracebackType) -> str:
    return traceback.tb_frame.f_code.co_filename
