"""Where a script is overheard: backward calls, modules called, optimisers made, cleared and stepped.

Nothing of Tensor's is touched, and everything is put back at the end.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    quiet: bool  # it only wants to know of steps, and of modules that run without gradients

    def made(self, optimizer: Optimizer) -> None: ...
    def before_clear(self, owner: Optimizer | nn.Module) -> None: ...
    def after_clear(self, owner: Optimizer | nn.Module) -> None: ...
    def before_backward(self, tensors: Any, retains: bool) -> None: ...
    def after_backward(self, tensors: Any, finished: bool) -> None: ...
    def before_grad(self, outputs: Any, inputs: Any) -> None: ...
    def after_grad(self, outputs: Any, finished: bool) -> None: ...
    def counted(self, optimizer: Optimizer) -> bool: ...
    def before_step(self, optimizer: Optimizer, closure: bool) -> None: ...
    def after_step(self, optimizer: Optimizer, closure: bool) -> None: ...
    def called(self, module: nn.Module, args: Any) -> None: ...
    def set_mode(self, module: nn.Module, training: bool) -> None: ...
    def froze(self, module: nn.Module, requires_grad: bool) -> None: ...
    def clipped(self, parameters: list[Any]) -> None: ...
    def compiles(self) -> None: ...
    def failed(self, error: Exception) -> None: ...


class _Guarded:
    """A listener whose own failures never reach the script: at the first one it is told, and hears nothing any more."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        tell = getattr(self._listener, name)

        def guarded(*args: Any) -> Any:
            if self._failed:
                return None
            try:
                return tell(*args)
            except Exception as error:  # of whatever kind: the script must run as it does without us
                self._failed = True
                self._listener.failed(error)
                return None

        self.__dict__[name] = guarded  # asked for once
        return guarded


_listening: tuple[int, int, Listener] | None = None  # process, thread, and who was told last to listen there


def listening() -> Listener | None:
    """The one that is told what happens in this thread, or None."""
    here = (os.getpid(), threading.get_ident())
    return _listening[2] if _listening is not None and _listening[:2] == here else None


Wrapping = Callable[[Callable[..., Any]], Callable[..., Any]]


@contextmanager
def overhear(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` what happens in this thread, until the block ends."""
    global _listening
    hears: Any = _Guarded(listener)
    modules = _ModuleCalls(lambda module, args: hears.called(module, args) if mine() else None)
    thread, process, before = threading.get_ident(), os.getpid(), _listening
    inside = [0]  # backwards that run now: a reentrant checkpoint starts one within another

    def mine() -> bool:
        return threading.get_ident() == thread and os.getpid() == process

    def telling(before: Callable[..., Any] | None, after: Callable[..., Any] | None = None) -> Wrapping:
        """A wrapping that tells of a call's first arguments before or after it."""

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if before is not None and mine():
                    before(*args, **kwargs)
                result = original(*args, **kwargs)
                if after is not None and mine():
                    after(*args, **kwargs)
                return result

            return wrapper

        return wrap

    def clear(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if listener.quiet or not mine():
                return original(owner, *args, **kwargs)
            hears.before_clear(owner)
            modules.listen(not listener.quiet)
            result = original(owner, *args, **kwargs)
            if not listener.quiet:
                hears.after_clear(owner)
            return result

        return wrapper

    def made(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        hears.made(optimizer)
        modules.listen(not listener.quiet)

    def compiles(*args: Any, **kwargs: Any) -> None:
        modules.forbid()  # a compiled module would run its hooks twice, and warns of them
        hears.compiles()

    def graphless(listens: bool) -> Callable[..., None]:
        def change(*args: Any) -> None:
            if listener.quiet:
                modules.listen(listens)

        return change

    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if listener.quiet or inside[0] or not mine():
                return original(tensors, *args, **kwargs)
            retain = kwargs.get("retain_graph", args[1] if len(args) > 1 else None)
            create = kwargs.get("create_graph", args[2] if len(args) > 2 else False)
            hears.before_backward(tensors, bool(create if retain is None else retain))
            inside[0] += 1
            finished = False
            try:
                result = original(tensors, *args, **kwargs)
                finished = True
            finally:
                inside[0] -= 1
                hears.after_backward(tensors, finished)
            return result

        return wrapper

    def grad(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if listener.quiet or inside[0] or not mine():
                return original(outputs, inputs, *args, **kwargs)
            hears.before_grad(outputs, inputs)
            finished = False
            try:
                result = original(outputs, inputs, *args, **kwargs)
                finished = True
            finally:
                hears.after_grad(outputs, finished)
            return result

        return wrapper

    def clip(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if not listener.quiet and mine() and not isinstance(parameters, torch.Tensor):
                parameters = list(parameters)  # an iterator is used up by the first who looks
                hears.clipped(parameters)
            return original(parameters, *args, **kwargs)

        return wrapper

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if listener.quiet and listener.counted(optimizer):
            return
        if mine():
            hears.before_step(optimizer, _has_closure(args, kwargs))
            if not listener.quiet:
                modules.listen(True)

    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not listener.quiet and mine():
            hears.after_step(optimizer, _has_closure(args, kwargs))

    wrapped: list[tuple[Any, str, Wrapping]] = [
        (Optimizer, "__init__", telling(None, made)),
        (Optimizer, "zero_grad", clear),
        (nn.Module, "zero_grad", clear),
        (torch.no_grad, "__enter__", telling(None, graphless(True))),
        (torch.no_grad, "__exit__", telling(graphless(False))),
        (torch.inference_mode, "__enter__", telling(None, graphless(True))),
        (torch.inference_mode, "__exit__", telling(graphless(False))),
        (nn.Module, "train", telling(lambda module, mode=True: hears.set_mode(module, mode))),
        (
            nn.Module,
            "requires_grad_",
            telling(None, lambda module, requires_grad=True: hears.froze(module, requires_grad)),
        ),
        (torch.autograd, "backward", backward),
        (torch.autograd, "grad", grad),
        (torch, "compile", telling(compiles)),
        (nn.Module, "compile", telling(compiles)),
        (nn.utils, "clip_grad_norm_", clip),
        (nn.utils.clip_grad, "clip_grad_norm_", clip),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in wrapped]
    handles = [
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
    ]
    modules.listen(not listener.quiet)
    for owner, name, wrap in wrapped:
        setattr(owner, name, wrap(getattr(owner, name)))
    _listening = process, thread, listener
    try:
        yield
    finally:
        _listening = before
        for owner, name, original in kept:
            setattr(owner, name, original)
        for handle in handles:
            handle.remove()
        modules.listen(False)


class _ModuleCalls:
    """The hook that runs before each module: it makes all calls slower, and so is there only while it is wanted."""

    def __init__(self, called: Callable[[nn.Module, Any], None]) -> None:
        self._called = called
        self._handle: RemovableHandle | None = None
        self._is_forbidden = False

    def forbid(self) -> None:
        self.listen(False)
        self._is_forbidden = True

    def listen(self, wanted: bool) -> None:
        wanted &= not self._is_forbidden
        if wanted and self._handle is None:
            self._handle = register_module_forward_pre_hook(self._tell)
        elif not wanted and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _tell(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._called(module, args)


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step was given a closure, which runs forward and backward inside of it."""
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))
