"""Names of losses, and what is left out of an audit, said where the backward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from stopgrad.flow.sites import recorder
from stopgrad.watch.names import said

_skipped: ContextVar[bool] = ContextVar("stopgrad_unaudited", default=False)


@contextlib.contextmanager
def loss_name(name: str) -> Iterator[None]:
    """Name the loss whose backward runs inside::

    with loss_name("d_loss"):
        self.manual_backward(d_loss)
    """
    token = said.set(name)
    try:
        yield
    finally:
        said.reset(token)


@contextlib.contextmanager
def unaudited() -> Iterator[None]:
    """Leave what runs inside out of the audit::

        with unaudited():
            self.manual_backward(self.policy_loss(batch) + self.value_loss(batch))

    For what repeats, in the same batch, losses that have been reported one by one: their sum takes one backward, from
    which nobody could tell whose gradient arrived where; and it is not traced a second time.
    """
    following = recorder()
    token = _skipped.set(True)
    try:
        with following.pause() if following else contextlib.nullcontext():
            yield
    finally:
        _skipped.reset(token)


def loss_being_named() -> str | None:
    """The name that :func:`loss_name` gives here, or None."""
    return said.get()


def is_unaudited() -> bool:
    """Whether :func:`unaudited` is in force here."""
    return _skipped.get()
