"""What rewritten code calls in the place of a stop: what stood there, noted, or another strategy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from stopgrad.cuts.boundary import Boundary
from stopgrad.cuts.watcher import watcher
from stopgrad.rewrite.stops import CALLS, VALUES, Stop

_switches: dict[str, Switch] = {}


@dataclass
class Switch:
    """A stop that was rewritten.

    Attributes:
        stop: what stands in the source.
        strategy: what is done instead, as it is spelled; that which stands there is ``stop.legal[0]``.
        ran: so often it came into play, and ``live``, with a value that carried a gradient.
        parameters: what a flag froze, or an optimiser or module cleared: ids.
    """

    stop: Stop
    strategy: str
    ran: int = 0
    live: int = 0
    parameters: dict[int, Tensor] = field(default_factory=dict)
    boundary: Boundary | None = None
    late: set[int] = field(default_factory=set)  # ids of owners whose gradients are cleared after their steps

    def __post_init__(self) -> None:
        if self.stop.kind in VALUES and self.is_switched and self.strategy != "none":
            self.boundary = Boundary(self.stop.name, self.strategy)

    @property
    def is_switched(self) -> bool:
        return self.strategy != self.stop.legal[0]

    def note(self, live: bool) -> None:
        self.ran += 1
        self.live += live


def register(switch: Switch) -> str:
    """Let a switch be what is done at its stop; the key by which rewritten code names it."""
    key = f"{switch.stop.file}:{switch.stop.id}"
    _switches[key] = switch
    return key


# ---- values


def cross(key: str, value: Any) -> Any:
    """``value.detach()``, ``value.detach_()`` or ``value.data``."""
    switch = _switches[key]
    if not isinstance(value, Tensor):  # something else has an attribute of this name
        made = getattr(value, switch.stop.kind)
        return made if switch.stop.kind == "data" else made()
    switch.note(value.requires_grad)
    if switch.boundary is not None:
        return switch.boundary.cross(value)
    if switch.is_switched:
        return value
    watch = watcher()
    if watch is None or not value.requires_grad or switch.stop.kind == "detach_":
        return _as_it_stands(switch.stop.kind, value)
    return watch.cut(switch.stop.name, switch.stop.kind, value, functools.partial(_as_it_stands, switch.stop.kind))


def _as_it_stands(kind: str, value: Tensor) -> Tensor:
    return value.data if kind == "data" else getattr(value, kind)()


def produce(key: str, producer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``producer(...).detach()``, with the call itself under the strategy."""
    switch = _switches[key]
    if switch.strategy not in CALLS or switch.boundary is None:
        return cross(key, producer(*args, **kwargs))
    switch.note(torch.is_grad_enabled())
    return switch.boundary(producer, *args, **kwargs)


# ---- contexts


class _Context:
    """A context that is entered, or a decorator, as ``torch.no_grad()`` is either."""

    def __init__(self, switch: Switch, make: Callable[[], Any]) -> None:
        self._switch, self._make = switch, make
        self._entered = threading.local()

    def __enter__(self) -> Any:
        stack = contextlib.ExitStack()
        self._switch.note(torch.is_grad_enabled())
        watch = watcher()
        if watch is not None and not self._switch.is_switched:
            stack.enter_context(watch.inside(self._switch.stop.name, self._switch.stop.kind))
        result = stack.enter_context(self._make())
        self._entered.stacks = [*getattr(self._entered, "stacks", ()), stack]
        return result

    def __exit__(self, *exc: Any) -> bool | None:
        return self._entered.stacks.pop().__exit__(*exc)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isclass(function) or inspect.isgeneratorfunction(function):
            made = self._make()
            return function if isinstance(made, contextlib.nullcontext) else made(function)

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return within


def context(key: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.no_grad()``, ``torch.inference_mode()``."""
    return _Context(_switches[key], _instead(_switches[key], functools.partial(make, *args, **kwargs)))


def context_type(key: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.no_grad`` where it is not called: a decorator, or called later."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if args and callable(args[0]):
            return context(key, make)(args[0])
        return context(key, make, *args, **kwargs)

    return made


def _instead(switch: Switch, make: Callable[..., Any]) -> Callable[..., Any]:
    others = {"none": contextlib.nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    return others[switch.strategy] if switch.is_switched else make


def enabled(key: str, make: Callable[..., Any], mode: Any) -> Any:
    """``torch.set_grad_enabled(mode)``, which is a statement or a context."""
    switch = _switches[key]
    if mode:
        return make(mode)
    switch.note(torch.is_grad_enabled())
    return contextlib.nullcontext() if switch.strategy == "none" else make(mode)


# ---- flags, and what clears or asks for gradients


def require(key: str, owner: Any, mode: Any = True, *, attribute: bool = False, **kwargs: Any) -> Any:
    """``owner.requires_grad_(mode)``, or ``owner.requires_grad = mode``."""
    switch = _switches[key]
    mode = kwargs.get("requires_grad", mode)
    if not mode:
        _note_parameters(switch, owner)
        switch.note(any(p.requires_grad for p in parameters_of(owner)))
        if switch.strategy == "none":
            return owner
    if not attribute:
        return owner.requires_grad_(mode)
    owner.requires_grad = mode
    return owner


def clear(key: str, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """``owner.zero_grad()``."""
    switch = _switches[key]
    if not isinstance(owner, Optimizer | nn.Module):  # what wraps one
        switch.note(True)
        return None if switch.is_switched else owner.zero_grad(*args, **kwargs)
    _note_parameters(switch, owner)
    switch.note(any(p.grad is not None for p in parameters_of(owner)))
    if switch.strategy == "late" and id(owner) not in switch.late:
        switch.late.add(id(owner))
        mine = {id(p) for p in parameters_of(owner)}

        def after(optimizer: Optimizer, *_: Any) -> None:
            if any(id(p) in mine for p in parameters_of(optimizer)):
                owner.zero_grad(*args, **kwargs)

        register_optimizer_step_post_hook(after)
    return None if switch.is_switched else owner.zero_grad(*args, **kwargs)


def ask(key: str, grad: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad(...)``, without a graph of its own."""
    switch = _switches[key]
    switch.note(True)
    if switch.strategy == "none":
        args, kwargs = args[:4], {**kwargs, "create_graph": True}
    return grad(*args, **kwargs)


def parameters_of(owner: Any) -> Iterator[Tensor]:
    """Of a module, an optimiser, or a tensor itself."""
    if isinstance(owner, Tensor):
        yield owner
    elif isinstance(owner, nn.Module):
        yield from owner.parameters()
    elif isinstance(owner, Optimizer):
        yield from (p for group in owner.param_groups for p in group["params"])


def _note_parameters(switch: Switch, owner: Any) -> None:
    if not switch.is_switched and switch.ran < 100:
        switch.parameters.update((id(p), p) for p in parameters_of(owner))
