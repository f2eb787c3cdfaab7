"""Whose line it is: the innermost frame that is the user's, not PyTorch's or ours."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType

import torch
from torch import nn

_STDLIB = os.path.dirname(os.__file__) + os.sep
_LIBRARIES = tuple(os.path.dirname(str(path)) + os.sep for path in (torch.__file__, os.path.dirname(__file__)))
_OPTIMIZERS = os.path.join(_LIBRARIES[0], "optim") + os.sep
_CHECKPOINT = os.path.join(_LIBRARIES[0], "utils", "checkpoint.py")
_TRAINERS = {"lightning", "pytorch_lightning"}
_KNOWN_FILES: dict[str, bool] = {}
_OF_OPTIMIZERS: dict[str, bool] = {}
_PASSED: set[str] = set()  # files whose lines are nobody's
_LOOPS: set[str] = set()  # files of a trainer that runs the user's step: what it computes itself is nobody's line


def is_library(file: str) -> bool:
    """True for frames that are nobody's model: torch, stopgrad, Lightning's trainer, the standard library."""
    path = os.path.abspath(file)
    parts = path.split(os.sep)
    installed = "site-packages" in parts or "dist-packages" in parts
    known = path.startswith(_LIBRARIES) or file.startswith("<frozen")
    known |= path.startswith(_STDLIB) and not installed
    known |= installed and bool({*_TRAINERS, "lightning_fabric"} & set(parts))
    if installed and _TRAINERS & set(parts) and "loops" in parts:
        _LOOPS.add(file)
    _KNOWN_FILES[file] = known
    return known


@cache
def _is_function_forward(code: CodeType) -> bool:
    """True for the forward of a custom Function. ``apply``, which calls it, has a frame in some torch versions only."""
    classes = [torch.autograd.Function]
    for cls in classes:
        classes += cls.__subclasses__()
    return any(getattr(inspect.unwrap(cls.forward), "__code__", None) is code for cls in classes[1:])


def user_line(function_calls: bool = False) -> tuple[str, int]:
    """File and line of the innermost frame that is the user's.

    Args:
        function_calls: an operation inside a custom Function's forward belongs to the line that applies the Function.
    """
    if function_calls:
        return graphless_line()[0]
    frame = sys._getframe(1)
    while frame is not None:  # this loop runs for every operation
        file = frame.f_code.co_filename
        if file not in _PASSED and not _passes(file):
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0


def graphless_line() -> tuple[tuple[str, int], bool]:
    """The line of an operation without a graph, and whether a reentrant checkpoint is why it has none."""
    frame, found, checkpoint = sys._getframe(1), None, False
    while frame is not None:
        file = frame.f_code.co_filename
        if found is None and file not in _PASSED and not _passes(file):
            found = file, frame.f_lineno
        if frame.f_code.co_name == "forward" and _is_function_forward(frame.f_code):
            found = None
            checkpoint |= file == _CHECKPOINT
        frame = frame.f_back
    return found or ("", 0), checkpoint


def _passes(file: str) -> bool:
    known = _KNOWN_FILES.get(file)
    known = is_library(file) if known is None else known
    if known and file not in _LOOPS:
        _PASSED.add(file)
    return file in _PASSED


def in_optimizer() -> bool:
    """True if one of torch's optimisers calls the caller: to follow its many operations would only cost time."""
    file = sys._getframe(2).f_code.co_filename
    known = _OF_OPTIMIZERS.get(file)
    if known is None:
        known = file.startswith(_OPTIMIZERS) and not file.endswith("swa_utils.py")  # an average does carry values
        _OF_OPTIMIZERS[file] = known
    return known


def modules_in_sight() -> Iterator[nn.Module]:
    """The modules that variables of the user's frames hold, and attributes of their ``self``; innermost frame first."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            held = [*frame.f_locals.values(), *getattr(frame.f_locals.get("self"), "__dict__", {}).values()]
            yield from (value for value in held if isinstance(value, nn.Module))
        frame = frame.f_back
