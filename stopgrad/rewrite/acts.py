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

_switches: list[Switch] = []
_DETACHES = (torch.detach, torch.detach_, Tensor.detach, Tensor.detach_)


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
    late: dict[int, Any] = field(default_factory=dict)  # by owner's id: the hook that clears its gradients after a step

    def __post_init__(self) -> None:
        if self.stop.kind in VALUES and self.is_switched and self.strategy != "none":
            self.boundary = Boundary(self.stop.name, self.strategy)

    @property
    def is_switched(self) -> bool:
        return self.strategy != self.stop.legal[0]

    def note(self, live: bool) -> None:
        self.ran += 1
        self.live += live

    def undo(self) -> None:
        """From here on the stop is done as it stands."""
        self.strategy, self.boundary = self.stop.legal[0], None
        for handle in self.late.values():
            handle.remove()


def register(switch: Switch) -> int:
    """Let a switch be what is done at its stop; the key by which rewritten code names it, as long as it lives."""
    _switches.append(switch)
    return len(_switches) - 1


# ---- values


def cross(key: int, input: Any) -> Any:
    """``input.detach()``, ``input.detach_()`` or ``input.data``."""
    switch, value = _switches[key], input
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


def cross_by(key: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.detach(value)``, ``Tensor.detach(value)``; another function of this name is called as it stands."""
    if not any(function is each for each in _DETACHES):
        return function(*args, **kwargs)
    return cross(key, *args, **kwargs)


def produce(key: int, producer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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
            decorated: Any = function if isinstance(made, contextlib.nullcontext) else made(function)

            @functools.wraps(function)
            def generator(*args: Any, **kwargs: Any) -> Any:
                self._switch.note(torch.is_grad_enabled())
                return (yield from decorated(*args, **kwargs))

            return decorated if inspect.isclass(function) else generator

        @functools.wraps(function)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return within


def context(key: int, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.no_grad()``, ``torch.inference_mode()``; what is called so elsewhere is called as it stands."""
    is_off = make is torch.inference_mode and not (args[0] if args else kwargs.get("mode", True))
    if not _is_context(make) or is_off:
        return make(*args, **kwargs)
    return _Context(_switches[key], _instead(_switches[key], functools.partial(make, *args, **kwargs)))


def context_type(key: int, make: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.no_grad`` where it is not called: a decorator, or called later; or a value of the user's of this name."""
    if not _is_context(make):
        return make

    def made(*args: Any, **kwargs: Any) -> Any:
        if args and callable(args[0]):
            return context(key, make)(args[0])
        return context(key, make, *args, **kwargs)

    return made


def _is_context(make: Any) -> bool:
    return make is torch.no_grad or make is torch.inference_mode


def _instead(switch: Switch, make: Callable[..., Any]) -> Callable[..., Any]:
    others = {"none": _Nothing, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    return others[switch.strategy] if switch.is_switched else make


class _Nothing(contextlib.nullcontext[None]):
    """No context: it is entered in vain, and decorates nothing."""

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def enabled(key: int, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.set_grad_enabled(mode)``, which is a statement, a context or a decorator."""
    switch = _switches[key]
    if make is not torch.set_grad_enabled or (args[0] if args else kwargs.get("mode")):
        return make(*args, **kwargs)
    switch.note(torch.is_grad_enabled())
    return _Nothing() if switch.strategy == "none" else make(*args, **kwargs)


# ---- flags, and what clears or asks for gradients


def require(key: int, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """``owner.requires_grad_(mode)``."""
    mode = args[0] if args else kwargs.get("requires_grad", True)
    if isinstance(owner, Tensor | nn.Module) and not mode and _is_left_out(_switches[key], owner):
        return owner
    return owner.requires_grad_(*args, **kwargs)


def flag(key: int, mode: Any, owner: Any) -> None:
    """``owner.requires_grad = mode``, the value first, as Python has it."""
    if not (isinstance(owner, Tensor) and not mode and _is_left_out(_switches[key], owner)):
        owner.requires_grad = mode


def _is_left_out(switch: Switch, owner: Tensor | nn.Module) -> bool:
    """Note that it would be frozen, and whether it is not."""
    _note_parameters(switch, owner)
    switch.note(any(p.requires_grad for p in parameters_of(owner)))
    return switch.strategy == "none"


def clear(key: int, owner: Any, *args: Any, **kwargs: Any) -> Any:
    """``owner.zero_grad()``."""
    switch = _switches[key]
    if not isinstance(owner, Optimizer | nn.Module):  # what wraps one: its step is not known
        if switch.strategy != "never":
            return owner.zero_grad(*args, **kwargs)
        switch.note(True)
        return None
    _note_parameters(switch, owner)
    switch.note(any(p.grad is not None for p in parameters_of(owner)))
    if switch.strategy == "late" and id(owner) not in switch.late:
        mine = {id(p) for p in parameters_of(owner)}

        def after(optimizer: Optimizer, *_: Any) -> None:
            if any(id(p) in mine for p in parameters_of(optimizer)):
                owner.zero_grad(*args, **kwargs)

        switch.late[id(owner)] = register_optimizer_step_post_hook(after)
    return None if switch.is_switched else owner.zero_grad(*args, **kwargs)


def ask(key: int, grad: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad(...)``, without a graph of its own."""
    switch = _switches[key]
    if grad is not torch.autograd.grad:  # another library's
        return grad(*args, **kwargs)
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
