"""Other threads that compute while an audit is on. What they make cannot be followed; that they did must be known."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from types import BuiltinFunctionType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from stopgrad.cuts.torch_internals import backward_task
from stopgrad.flow.frames import is_library, user_line
from stopgrad.flow.lookup import parameters_of
from stopgrad.flow.values import place


class OtherThreads:
    """Notices the first other thread that computes, and where, from :meth:`begin` to :meth:`leave`.

    Seen are modules that hold one of some parameters, in whichever thread they are called; and any function that is not
    PyTorch's or the standard library's, in a thread that starts meanwhile or that an executor gives it to. An installed
    package that has nothing of PyTorch's, such as a progress bar, may go on there as it likes.

    Args:
        parameters: ids of parameters.
        notice: called with what is to be said.
    """

    def __init__(self, parameters: Collection[int], notice: Callable[[str], None]) -> None:
        self._own, self._parameters, self._notice = threading.get_ident(), parameters, notice
        self._on = False
        self._before: Any = None
        self._submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit
        self._hook: RemovableHandle | None = None

    def begin(self) -> None:
        self._before, self._submit = threading.getprofile(), ThreadPoolExecutor.submit
        self._on = True
        self._hook = register_module_forward_pre_hook(self._module)
        threading.setprofile(self._profile)
        ThreadPoolExecutor.submit = self._submitting()

    def leave(self) -> None:
        """Look no more; nothing where that was done, and all of it where an exception kept from some."""
        if self._on:
            ThreadPoolExecutor.submit = self._submit
            threading.setprofile(self._before)
            if self._hook is not None:
                self._hook.remove()
            self._notice = _nothing  # or it would keep whom it tells alive
            self._on = False

    def _found(self, file: str, line: int) -> None:
        if self._on:
            self._notice(f"another thread computed at {place(file, line)}, which an audit cannot follow")

    def _module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() == self._own or backward_task() >= 0:  # a checkpoint that runs again makes no value
            return
        if any(id(p) in self._parameters for p in parameters_of(module, recurse=False)):
            self._found(*user_line())

    def _profile(self, frame: FrameType, event: Any, arg: Any) -> None:
        """What Python calls for each function in a new thread, in place of what it would have called."""
        if self._on and not _computes(frame, event, arg):
            return
        if self._on and threading.get_ident() != self._own:
            self._found(frame.f_code.co_filename, frame.f_lineno)
        sys.setprofile(self._before)

    def _submitting(self) -> Callable[..., Future[Any]]:
        submit = self._submit

        @functools.wraps(submit)
        def watched(pool: ThreadPoolExecutor, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return submit(pool, self._watched, run, *args, **kwargs)

        return watched

    def _watched(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if _is_torch(run):
            self._found("", 0)
        before = sys.getprofile()
        if self._on and before is None:
            sys.setprofile(self._profile)
        try:
            return run(*args, **kwargs)
        finally:
            sys.setprofile(before)


def _nothing(what: str) -> None:
    """Told to nobody."""


def _computes(frame: FrameType, event: str, arg: Any) -> bool:
    """A function of the user's begins, or somebody else calls one of PyTorch's."""
    if event == "call":
        generated = frame.f_code.co_filename == "<string>" and frame.f_globals.get("__name__") != "__main__"
        return not generated and not is_library(frame.f_code.co_filename) and not _is_strange_to_torch(frame)
    caller = frame.f_globals.get("__name__", "").partition(".")[0]
    return event == "c_call" and _is_torch(arg) and caller not in ("torch", "stopgrad")


_STRANGE: dict[str, bool] = {}  # by file


def _is_strange_to_torch(frame: FrameType) -> bool:
    """A function of an installed module that has nothing of PyTorch's among its names."""
    file = frame.f_code.co_filename
    if file not in _STRANGE:
        installed = not {"site-packages", "dist-packages"}.isdisjoint(file.split(os.sep))
        _STRANGE[file] = installed and not any(map(_is_of_torch, list(frame.f_globals.values())))
    return _STRANGE[file]


def _is_of_torch(value: Any) -> bool:
    """A module, a class or a function of PyTorch's."""
    kinds = (type, FunctionType, BuiltinFunctionType)
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return isinstance(value, (ModuleType, *kinds)) and str(home).partition(".")[0] == "torch"


def _is_torch(function: Any) -> bool:
    """A function of PyTorch's that is written in C."""
    if not inspect.isbuiltin(function):
        return False
    of = function.__self__
    homes = (function.__module__, getattr(of, "__module__", None), getattr(of, "__name__", None))
    return isinstance(of, Tensor) or any(str(home).startswith("torch") for home in homes)
