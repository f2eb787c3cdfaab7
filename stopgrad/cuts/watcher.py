"""Who watches the crossings. An audit stands here while it is on, so that a cut need not know what an audit is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Watcher(Protocol):
    """What a boundary tells of everything that crosses it."""

    thread: int  # of the audit: what other threads do is not its business
    strategies: dict[str, str]  # of each boundary that was crossed, as its choice is spelled

    def inside(self, name: str, kind: str) -> AbstractContextManager[None]:
        """The producer of the boundary ``name`` runs, and makes a cut of this kind."""
        ...

    def gate(self, name: str, leaf: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """``leaf`` crosses a boundary that lets gradient through. Returns what ``cut`` makes of it."""
        ...

    def cut(self, name: str, kind: str, leaf: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """``leaf`` crosses a boundary that stops its gradient. Returns what ``cut`` makes of it."""
        ...

    def freeze(self, name: str, leaf: Tensor, args: Any) -> Tensor:
        """``leaf`` was made from ``args`` by a producer whose parameters were frozen."""
        ...


_standing: Watcher | None = None
_give_way: Callable[[], None] | None = None  # called where another is to watch, in place of an error


def watcher() -> Watcher | None:
    """The one that watches this thread, or None."""
    return _standing if _standing is not None and _standing.thread == threading.get_ident() else None


def stand(new: Watcher) -> None:
    """Let ``new`` watch, from here on.

    Raises:
        RuntimeError: another one does.
    """
    global _standing, _give_way
    if _standing is not None and _give_way is not None and _standing.thread == threading.get_ident():
        give_way, _give_way = _give_way, None
        give_way()
    if _standing is not None:
        where = "in another thread" if _standing.thread != threading.get_ident() else "already, around this one"
        raise RuntimeError(f"an audit is on {where}; one at a time: leave it first")
    _standing = new


def leave(old: Watcher) -> None:
    """Let ``old`` watch no more."""
    global _standing, _give_way
    if _standing is old:
        _standing = _give_way = None


def yield_by(give_way: Callable[[], None]) -> None:
    """The one that watches now ends, by this call, as soon as another wants to."""
    global _give_way
    _give_way = give_way
