"""A working folder for each arm: what the script reads is linked, what it writes stays there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
# Events of Python's that change a file, and which of their arguments are paths that change.
_CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod"), (0,)),
    **dict.fromkeys(("shutil.rmtree", "sqlite3.connect"), (0,)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
    "os.rename": (0, 1),
}
_TAKE_AWAY = ("os.remove", "os.rmdir", "os.rename", "shutil.rmtree")


class WritesElsewhere(RuntimeError):
    """The script writes where its arm's folder is not."""


class Workspace:
    """A folder in which a script finds all that its own working directory holds, by links, and keeps what it writes.

    A linked folder becomes a folder of links as soon as something in it is written, and a linked file a copy.

    Args:
        folder: of the arm; made where it is missing.
        source: the script's own working directory.
        allow_writes: files elsewhere may be written.
    """

    def __init__(self, folder: Path, source: Path, allow_writes: bool = False) -> None:
        self.folder, self.source, self.allow_writes = folder.resolve(), source.resolve(), allow_writes
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self._free = [os.path.realpath(path) for path in (tempfile.gettempdir(), cache, "/dev", "/proc")]
        self._busy = False

    def fill(self) -> None:
        """Link all that is in the source, but for the folder itself."""
        self.folder.mkdir(parents=True)
        self._link(self.source, self.folder)

    def _link(self, source: Path, folder: Path) -> None:
        for entry in os.scandir(source):
            path = Path(entry.path)
            if not self.folder.is_relative_to(path.resolve()):
                os.symlink(path, folder / entry.name)
            elif path.resolve() != self.folder.parent:
                (folder / entry.name).mkdir()
                self._link(path, folder / entry.name)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """The working directory is this folder, and what would be written elsewhere is refused.

        Python cannot take a guard back: it holds until the process ends, and so belongs in one of its own.
        """
        before, save = os.getcwd(), torch.save
        os.chdir(self.folder)
        sys.addaudithook(self._audit)
        torch.save = self._saves(save)  # writes from C++, of which Python hears nothing
        try:
            yield
        finally:
            torch.save = save
            self._busy = True
            os.chdir(before)

    def _saves(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(save)
        def guarded(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(f, str | os.PathLike):
                self._change(f, overwrites=True)
            return save(obj, f, *args, **kwargs)

        return guarded

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._busy:
            return
        if event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & _WRITES:
                self._change(path, overwrites="w" in (mode or "") or bool((flags or 0) & os.O_TRUNC))
        elif event in _CHANGES and not any(
            isinstance(fd, int) and fd >= 0 for fd in args[2:]
        ):  # in a folder that is open
            for which in _CHANGES[event]:
                self._change(args[which], removes=event in _TAKE_AWAY)
                if event == "shutil.rmtree":
                    self._unfold_all(args[which])

    def _change(self, path: Any, overwrites: bool = False, removes: bool = False) -> None:
        """Something is about to write, or take away, this path."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: it was opened before
        self._busy = True
        try:
            here = os.path.abspath(os.fsdecode(path))
            if here == str(self.folder) or here.startswith(str(self.folder) + os.sep):
                self._own(Path(here), overwrites, removes)
            else:
                self._outside(here)
        finally:
            self._busy = False

    def _own(self, path: Path, overwrites: bool, removes: bool) -> None:
        for parent in reversed(path.relative_to(self.folder).parents[:-1]):
            self._unfold(self.folder / parent)
        if path.is_symlink() and not removes and path.resolve().is_file():
            target = path.resolve()
            path.unlink()
            if overwrites:
                path.touch()
            else:
                shutil.copy2(target, path)

    def _unfold(self, folder: Path) -> None:
        """Make of a linked folder a folder of links."""
        if folder.is_symlink() and folder.is_dir():
            target = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in os.scandir(target):
                os.symlink(entry.path, folder / entry.name)

    def _unfold_all(self, folder: Any) -> None:
        self._busy = True
        try:
            for path, folders, _ in os.walk(folder):
                self._unfold(Path(path))
                for name in folders:
                    self._unfold(Path(path) / name)
        finally:
            self._busy = False

    def _outside(self, path: str) -> None:
        real = os.path.realpath(path)
        if self.allow_writes or "__pycache__" in real.split(os.sep) or real.startswith(str(self.folder.parent)):
            return
        if not Path(real).is_relative_to(self.source) and any(Path(real).is_relative_to(free) for free in self._free):
            return
        raise WritesElsewhere(f"the script writes {path}, outside of its arm's folder: --allow-writes lets it")


def clear(folder: Path) -> None:
    """Take away what an earlier run has left: links, and not what they lead to."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(path, name))
        for name in folders:
            inner = os.path.join(path, name)
            if os.path.islink(inner):
                os.unlink(inner)
            else:
                os.rmdir(inner)
