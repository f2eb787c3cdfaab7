"""Where a script is overheard: backward calls, gradients asked for, optimisers made, cleared and stepped.

Nothing of Tensor's is touched, and everything is put back at the end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Listener(Protocol):
    def made(self, optimizer: Optimizer) -> None: ...
    def before_clear(self, owner: Optimizer | nn.Module) -> None: ...
    def before_backward(self, tensors: Any) -> None: ...
    def after_backward(self, tensors: Any) -> None: ...
    def before_step(self, optimizer: Optimizer) -> None: ...
    def after_step(self, optimizer: Optimizer) -> None: ...


@contextmanager
def overhear(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` what happens in this thread, until the block ends."""
    thread = threading.get_ident()
    inside = [0]  # backwards that run now: a reentrant checkpoint starts one within another

    def mine() -> bool:
        return threading.get_ident() == thread

    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if mine():
                listener.made(self)

        return wrapper

    def clear(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if mine():
                listener.before_clear(self)
            return original(self, *args, **kwargs)

        return wrapper

    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not mine() or inside[0]:
                return original(tensors, *args, **kwargs)
            listener.before_backward(tensors)
            inside[0] += 1
            try:
                result = original(tensors, *args, **kwargs)
            finally:
                inside[0] -= 1
            listener.after_backward(tensors)
            return result

        return wrapper

    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if mine():
            listener.before_step(optimizer)

    def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if mine():
            listener.after_step(optimizer)

    wrapped = [
        (Optimizer, "__init__", init),
        (Optimizer, "zero_grad", clear),
        (nn.Module, "zero_grad", clear),
        (torch.autograd, "backward", backward),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in wrapped]
    handles = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]
    for owner, name, wrap in wrapped:
        setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)
        for handle in handles:
            handle.remove()
