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


class Listener(Protocol):
    def made(self, optimizer: Optimizer) -> None: ...
    def before_clear(self, owner: Optimizer | nn.Module) -> None: ...
    def after_clear(self, owner: Optimizer | nn.Module) -> None: ...
    def before_backward(self, tensors: Any, retains: bool) -> None: ...
    def after_backward(self, tensors: Any, finished: bool) -> None: ...
    def before_grad(self, outputs: Any, inputs: Any) -> None: ...
    def after_grad(self, outputs: Any, finished: bool) -> None: ...
    def before_step(self, optimizer: Optimizer, closure: bool) -> None: ...
    def after_step(self, optimizer: Optimizer, closure: bool) -> None: ...
    def called(self, module: nn.Module, args: Any) -> None: ...
    def set_mode(self, module: nn.Module, training: bool) -> None: ...
    def froze(self, module: nn.Module, requires_grad: bool) -> None: ...
    def clipped(self, parameters: Any) -> Any: ...


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
    thread, process, before = threading.get_ident(), os.getpid(), _listening
    inside = [0]  # backwards that run now: a reentrant checkpoint starts one within another

    def mine() -> bool:
        return threading.get_ident() == thread and os.getpid() == process

    def told(before: Callable[..., Any] | None, after: Callable[..., Any] | None = None) -> Wrapping:
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

    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not mine() or inside[0]:
                return original(tensors, *args, **kwargs)
            retain = kwargs.get("retain_graph", args[1] if len(args) > 1 else None)
            create = kwargs.get("create_graph", args[2] if len(args) > 2 else False)
            listener.before_backward(tensors, bool(create if retain is None else retain))
            inside[0] += 1
            finished = False
            try:
                result = original(tensors, *args, **kwargs)
                finished = True
            finally:
                inside[0] -= 1
                listener.after_backward(tensors, finished)
            return result

        return wrapper

    def grad(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not mine() or inside[0]:
                return original(outputs, inputs, *args, **kwargs)
            listener.before_grad(outputs, inputs)
            finished = False
            try:
                result = original(outputs, inputs, *args, **kwargs)
                finished = True
            finally:
                listener.after_grad(outputs, finished)
            return result

        return wrapper

    def clip(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            return original(listener.clipped(parameters) if mine() else parameters, *args, **kwargs)

        return wrapper

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if mine():
            listener.before_step(optimizer, _has_closure(args, kwargs))

    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if mine():
            listener.after_step(optimizer, _has_closure(args, kwargs))

    def called(module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and mine():
            listener.called(module, args)

    wrapped: list[tuple[Any, str, Wrapping]] = [
        (Optimizer, "__init__", told(None, _first(listener.made))),
        (Optimizer, "zero_grad", told(_first(listener.before_clear), _first(listener.after_clear))),
        (nn.Module, "zero_grad", told(_first(listener.before_clear), _first(listener.after_clear))),
        (nn.Module, "train", told(lambda module, mode=True: listener.set_mode(module, mode))),
        (
            nn.Module,
            "requires_grad_",
            told(None, lambda module, requires_grad=True: listener.froze(module, requires_grad)),
        ),
        (torch.autograd, "backward", backward),
        (torch.autograd, "grad", grad),
        (nn.utils, "clip_grad_norm_", clip),
        (nn.utils.clip_grad, "clip_grad_norm_", clip),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in wrapped]
    handles = [
        register_optimizer_step_pre_hook(before_step),
        register_optimizer_step_post_hook(after_step),
        register_module_forward_pre_hook(called),
    ]
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


def _first(tell: Callable[[Any], None]) -> Callable[..., None]:
    """Of a call's arguments the first is told."""
    return lambda owner, *_, **__: tell(owner)


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step was given a closure, which runs forward and backward inside of it."""
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))
