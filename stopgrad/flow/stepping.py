"""The step of an optimiser of PyTorch's: thousands of operations, which an audit passes by all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stopgrad.cuts.torch_internals import around_step
from stopgrad.flow.sites import Recorder, recorder


def pass_by(optimizer: Optimizer) -> list[RemovableHandle]:
    """Let the audit that is on look away while the optimiser steps; not from its closure, nor from hooks of its step.

    Returns:
        the hooks by which it does; none of an optimiser that is not PyTorch's own.
    """
    standing = recorder()
    if standing is None or not f"{type(optimizer).__module__}.".startswith("torch.optim."):
        return []

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if not (innermost() and standing.aside()):
            return None
        args = tuple(_seen(each, standing) if i == 1 else each for i, each in enumerate(args))
        return args, {key: _seen(each, standing) if key == "closure" else each for key, each in kwargs.items()}

    handles, innermost = around_step(optimizer, before, lambda *_: standing.back())
    return handles


def _seen(closure: Callable[..., Any] | None, recorder: Recorder) -> Callable[..., Any] | None:
    """A closure inside which the recorder looks. One that raises ends the step: then it goes on looking."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        recorder.back()
        result = closure(*args, **kwargs)  # pyright: ignore[reportOptionalCall]
        recorder.aside()
        return result

    return closure and seen
