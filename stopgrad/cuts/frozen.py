"""Parameters that stand still while a function runs: also where a checkpoint runs it again, and inside ``torch.func``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

from stopgrad.cuts.torch_internals import functorch_level, wrap_checkpointed

T = TypeVar("T")
_Hold = Callable[..., Any]  # hold(run, *args, **kwargs) is run(*args, **kwargs) with some parameters standing still

_lock = threading.RLock()
_held: dict[int, tuple[Tensor, list[int]]] = {}  # by id: a parameter whose flag is down, and a thread for each hold


class _Here(threading.local):
    """The holds under which this thread runs: a checkpoint that it makes runs again under the same."""

    def __init__(self) -> None:
        self.holds: list[_Hold] = []


_here = _Here()


def call_frozen(modules: Sequence[nn.Module], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """``run(*args, **kwargs)`` while the modules' parameters do not require grad; each flag is restored after.

    It holds again where :mod:`torch.utils.checkpoint` runs again what ran inside, in whichever thread that is. Of several
    threads that hold a parameter, the last one restores it. Where no flag can be set (inside ``torch.func``, or where
    ``functional_call`` has put a computed tensor in a parameter's place), the parameters are detached instead.
    """
    wrap_checkpointed(_again)
    parameters = {id(p): p for module in modules for p in module.parameters()}
    if functorch_level() is None and all(p.is_leaf for p in parameters.values()):
        return _by_flags(parameters, run, *args, **kwargs)
    call = _Call(modules)
    return _by_swap(call, {name: p.detach() for name, p in call.named_parameters()}, run, *args, **kwargs)


def held_elsewhere(module: nn.Module) -> bool:
    """Another thread has frozen a parameter of the module, which this thread would see frozen too."""
    me = threading.get_ident()
    return bool(_held) and any(id(p) in _held and me not in _held[id(p)][1] for p in module.parameters())


def _by_flags(parameters: dict[int, Tensor], run: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    mine: list[int] = []
    _here.holds.append(functools.partial(_by_flags, parameters))
    try:
        _take(parameters, mine)
        return run(*args, **kwargs)
    finally:
        _here.holds.pop()
        _give_back(mine)


def _take(parameters: dict[int, Tensor], mine: list[int]) -> None:
    """Lower the flags, and note in ``mine`` each that is held."""
    me = threading.get_ident()
    with _lock:
        for key, p in parameters.items():
            if key in _held:
                _held[key][1].append(me)
            elif p.requires_grad:
                _held[key] = p, [me]
                p.requires_grad_(False)
            else:
                continue
            mine.append(key)


def _give_back(mine: list[int]) -> None:
    me = threading.get_ident()
    with _lock:
        for key in mine:
            p, threads = _held[key]
            threads.remove(me)
            if not threads:
                del _held[key]
                p.requires_grad_(True)


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
