"""A working folder for each arm: what the script reads is linked, what it writes stays there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

SETTINGS = (".yaml", ".yml", ".json", ".toml", ".ini", ".cfg")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
# Events of Python's that change a file, and which of their arguments are paths that change.
_CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod"), (0,)),
    **dict.fromkeys(("shutil.rmtree", "sqlite3.connect"), (0,)),
    **dict.fromkeys(("os.link", "os.symlink"), (1,)),
    "os.rename": (0, 1),
}
_TAKE_AWAY = ("os.remove", "os.rmdir", "os.rename", "shutil.rmtree")


_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _is_in_an_open_folder(event: str, args: tuple[Any, ...]) -> bool:
    """The path is told from a descriptor of its folder, which was opened before."""
    others = args[1:] if event in ("os.remove", "os.rmdir") else args[2:]
    return any(isinstance(descriptor, int) and descriptor >= 0 for descriptor in others)


class WritesElsewhere(RuntimeError):
    """The script writes where its arm's folder is not."""


class Workspace:
    """A folder in which a script finds all that its own working directory holds, by links, and keeps what it writes.

    A linked folder becomes a folder of links as soon as something in it is written, and a linked file a copy.

    Args:
        folder: of the arm; made where it is missing.
        source: the script's own working directory.
        allow_writes: files elsewhere may be written.
        apart: what the arms leave, which none of them finds; by default the folder's parent.
    """

    def __init__(self, folder: Path, source: Path, allow_writes: bool = False, apart: Path | None = None) -> None:
        self.folder, self.source, self.allow_writes = folder.resolve(), source.resolve(), allow_writes
        self.apart = (apart or folder.parent).resolve()
        home = [os.environ.get(f"XDG_{name}_HOME") or f"~/.{name.lower()}" for name in ("CACHE", "CONFIG")]
        free = (tempfile.gettempdir(), *map(os.path.expanduser, home), "/dev", "/proc")
        self._free = [os.path.realpath(path) for path in free]
        self.settings: set[str] = set()  # files that the script has read and that say what it does
        self._is_over = False
        self._at_work = threading.local()

    def fill(self) -> None:
        """Link all that is in the source, but for what the arms leave, and the folders that hold nothing else."""
        self.folder.mkdir(parents=True)
        self._link(self.source, self.folder)

    def _link(self, source: Path, folder: Path) -> None:
        for entry in os.scandir(source):
            real, own = Path(os.path.realpath(entry.path)), (self.apart, self.folder.parent)
            if not any(each.is_relative_to(real) for each in own):
                folder.mkdir(parents=True, exist_ok=True)
                os.symlink(entry.path, folder / entry.name)
            elif real not in own:
                self._link(Path(entry.path), folder / entry.name)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """The working directory is this folder, and what would be written elsewhere is refused.

        Python cannot take a guard back: it holds until the process ends, and so belongs in one of its own.
        """
        before = os.getcwd()
        scripted: Any = torch.jit.RecursiveScriptModule  # pyright: ignore[reportPrivateImportUsage]
        savers = [(torch, "save"), (torch.jit, "save"), (scripted, "save")]
        kept = [getattr(owner, name) for owner, name in savers]
        os.chdir(self.folder)
        sys.addaudithook(self._audit)
        for (owner, name), save in zip(savers, kept, strict=True):  # they write from C++, of which Python hears nothing
            setattr(owner, name, self._saves(save))
        try:
            yield
        finally:
            for (owner, name), save in zip(savers, kept, strict=True):
                setattr(owner, name, save)
            self._is_over = True
            os.chdir(before)

    def _saves(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(save)
        def guarded(obj: Any, *args: Any, **kwargs: Any) -> Any:
            file = args[0] if args else kwargs.get("f")
            if isinstance(file, str | os.PathLike):
                self._change(file, overwrites=True)
            return save(obj, *args, **kwargs)

        return guarded

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._is_over or getattr(self._at_work, "is_on", False):
            return
        if event == "os.chdir":
            self._enter(args[0])
        elif event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & _WRITES:
                self._change(path, overwrites="w" in (mode or "") or bool((flags or 0) & os.O_TRUNC))
            elif isinstance(path, str | os.PathLike) and os.fspath(path).endswith(SETTINGS):
                real = os.path.realpath(path)
                if not ("site-packages" in real.split(os.sep) or self._is_free(real)):
                    self.settings.add(real)
        elif event in _CHANGES and not _is_in_an_open_folder(event, args):
            if event == "os.mkdir" and os.path.isdir(args[0]):
                return  # it is there: nothing changes
            for which in _CHANGES[event]:
                self._change(args[which], removes=event in _TAKE_AWAY)
                if event == "shutil.rmtree":
                    self._unfold_all(args[which])

    def _change(self, path: Any, overwrites: bool = False, removes: bool = False) -> None:
        """Something is about to write, or take away, this path."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: it was opened before
        with self._working():
            here = os.path.abspath(os.fsdecode(path))
            if self._holds(here):
                self._own(Path(here), overwrites, removes)
            else:
                self._outside(here)

    def _enter(self, path: Any) -> None:
        """The script is about to make this its working directory: a link would lead it out of the folder."""
        here = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if self._holds(here):
            with self._working():
                self._own(Path(here) / "inside", False, False)

    def _holds(self, path: str) -> bool:
        return path == str(self.folder) or path.startswith(str(self.folder) + os.sep)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Inside, what this thread changes is our own doing; one thread at a time."""
        with _lock:
            self._at_work.is_on = True
            try:
                yield
            finally:
                self._at_work.is_on = False

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
        with self._working():
            for path, folders, _ in os.walk(folder):
                self._unfold(Path(path))
                for name in folders:
                    self._unfold(Path(path) / name)

    def _is_free(self, real: str) -> bool:
        """A temporary file, or one of a program's own."""
        path = Path(real)
        return not path.is_relative_to(self.source) and any(path.is_relative_to(free) for free in self._free)

    def _outside(self, path: str) -> None:
        real = os.path.realpath(path)
        if self.allow_writes or "__pycache__" in real.split(os.sep) or real.startswith(str(self.folder.parent)):
            return
        if self._is_free(real):
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
