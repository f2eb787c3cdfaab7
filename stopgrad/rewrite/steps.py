"""A script that ends after so many optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


class Enough(BaseException):
    """The steps that were asked for are done. No ``except Exception`` of the script's stops it."""


@contextmanager
def at_most(steps: int | None) -> Iterator[None]:
    """Inside, :class:`Enough` is raised by the last of so many optimiser steps, of all optimisers; None for no end."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if steps and done >= steps:  # again, where a bare except has caught it
            raise Enough

    handle = register_optimizer_step_post_hook(count) if steps else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
