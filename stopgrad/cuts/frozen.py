"""Parameters that stand still while a function runs: also where a checkpoint runs it again, and in ``torch.func``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stopgrad.cuts.torch_internals import forward_mode, functorch_level, swapped_parameters, wrap_checkpointed

T = TypeVar("T")
_Hold = Callable[..., Any]  # hold(run, *args, **kwargs) is run(*args, **kwargs) with some parameters standing still

_lock = threading.RLock()
_holding: list[_Held] = []  # the calls of now, of all threads


class _Here(threading.local):
    """The holds under which this thread runs: a checkpoint that it makes runs again under the same."""

    def __init__(self) -> None:
        self.holds: list[_Hold] = []


_here = _Here()


def call_frozen(modules: Sequence[nn.Module], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """``run(*args, **kwargs)`` while the modules' parameters do not require grad; each flag is restored after.

    It holds again where :mod:`torch.utils.checkpoint` runs again what ran inside, in whichever thread that is. Of
    several threads that hold a parameter, the last one restores it. Where a flag does not do (inside ``torch.func``, in
    forward mode, where ``functional_call`` put a computed tensor in a parameter's place), they are detached instead.
    """
    if torch.compiler.is_compiling():
        return _in_graph(modules, run, *args, **kwargs)
    parameters = [p for module in modules for p in module.parameters()]
    if functorch_level() is None and not forward_mode() and all(p.is_leaf for p in parameters):
        return _by_flags(parameters, run, *args, **kwargs)
    call = _Call(modules)
    return _by_swap(call, {name: p.detach() for name, p in call.named_parameters()}, run, *args, **kwargs)


def is_any_held() -> bool:
    """Some thread is in a call that froze a parameter."""
    return bool(_holding)


def held_elsewhere(module: nn.Module) -> bool:
    """Another thread has frozen a parameter of the module, so that this thread would see it frozen too."""
    me = threading.get_ident()
    with _lock:
        mine, others = (_ids(held for held in _holding if (held.thread == me) is here) for here in (True, False))
    return any(id(p) in others and id(p) not in mine for p in module.parameters())


def _by_flags(parameters: Sequence[Tensor], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    held = _Held()
    _here.holds.append(functools.partial(_by_flags, parameters))
    try:
        held.take(parameters)
        return run(*args, **kwargs)
    finally:
        _here.holds.pop()
        held.give_back()


def _in_graph(modules: Sequence[nn.Module], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """In a graph that torch.compile makes, whose parameters keep the flags that it was made for: they are detached."""
    if not modules:
        return run(*args, **kwargs)
    with swapped_parameters(modules[0], {name: p.detach() for name, p in modules[0].named_parameters()}):
        return _in_graph(modules[1:], run, *args, **kwargs)


class _Held:
    """The parameters that one call holds: those whose flags it lowered, and those that another call had lowered."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.parameters: list[Tensor] = []

    def take(self, parameters: Sequence[Tensor]) -> None:
        with _lock:
            others = _ids(_holding)
            _holding.append(self)
            for p in parameters:
                if p.requires_grad:
                    self.parameters.append(p)
                    p.requires_grad_(False)
                elif others and id(p) in others:
                    self.parameters.append(p)

    def give_back(self) -> None:
        with _lock:
            if self in _holding:
                _holding.remove(self)
            others = _ids(_holding)
            for p in self.parameters:
                if id(p) not in others:
                    p.requires_grad_(True)


def _ids(holding: Iterable[_Held]) -> set[int]:
    return {id(p) for held in holding for p in held.parameters}


class _Call(nn.Module):
    """A call of any function, as one of a module that has the parameters of some modules, each tied one once."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modules_held = nn.ModuleList(modules)

    def forward(self, run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        return run(*args, **kwargs)


def _by_swap(call: _Call, detached: dict[str, Tensor], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    _here.holds.append(functools.partial(_by_swap, call, detached))
    try:
        return functional_call(call, detached, (run, *args), kwargs)
    finally:
        _here.holds.pop()


def _again(run: Callable[..., T]) -> Callable[..., T]:
    """A function that a checkpoint will run again, under the holds of now."""
    for hold in reversed(_here.holds):
        run = functools.partial(hold, run)
    return run


wrap_checkpointed(_again)  # it does nothing to what runs under no hold
