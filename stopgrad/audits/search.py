"""What hangs on an object, by name and at any depth: attributes, containers, closures, hooks."""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import time
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stopgrad.cuts.torch_internals import gradient_hooks, post_accumulate_hooks

_ATOMS = (
    *(str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, types.CodeType, range, slice),
    *(weakref.ref, torch.dtype, torch.device, torch.Size, torch.Generator, torch.layout, torch.memory_format),
)
_GLOBALS = (Tensor, list, dict, set, deque)  # of what a function's globals are, this is searched
_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "numpy", "stopgrad"}
_CACHE = type(functools.lru_cache(lambda: None))


class Found(NamedTuple):
    """``tensors`` with a graph, by the path where they hang; ``left``: a place that there was no time for, or ""."""

    tensors: dict[str, list[Tensor]]
    left: str


def search(roots: Mapping[str, Any], *, leave: Iterable[object] = (), seconds: float) -> Found:
    """Find every tensor with a graph that hangs on the roots, those nearest to a root first.

    Elements of a list, tuple, set or deque share its path, and so do the entries of a dict under keys that are no
    strings; other entries and attributes have paths of their own.

    Args:
        leave: objects that are not entered.
        seconds: the search ends after so many, and says where.
    """
    end = time.perf_counter() + seconds
    found: dict[str, list[Tensor]] = {}
    seen = {id(each) for each in leave}
    alive: list[Any] = []  # what was made for the search must live as long as its id counts as seen
    queue: deque[tuple[str, Any]] = deque(roots.items())
    for count in itertools.count(1):
        if not queue:
            return Found(found, "")
        if count % 64 == 1 and time.perf_counter() > end:
            return Found(found, queue[0][0])
        path, item = queue.popleft()
        if isinstance(item, Tensor) and item.grad_fn is not None:
            found.setdefault(path, []).append(item)
        if id(item) not in seen:
            seen.add(id(item))
            alive.append(item)
            queue += ((inner, child) for inner, child in _children(path, item, seen) if not _is_bare(child))
    raise AssertionError


def _is_bare(item: Any) -> bool:
    """Nothing hangs on it: a number, a class, a weak reference, a tensor that never had a graph."""
    if type(item) in weakref.ProxyTypes or isinstance(item, _ATOMS):
        return True
    return type(item) is Tensor and not item.requires_grad


def _children(path: str, item: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(item, dict):
        for key, value in list(dict.items(item)):
            yield (f"{path}[{key!r}]" if isinstance(key, str) else f"{path}[...]"), value
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield from ((path, value) for value in list(item))
    elif isinstance(item, types.FunctionType):
        yield from _of_function(path, item)
    elif isinstance(item, types.MethodType | types.BuiltinMethodType):
        yield path, item.__self__
        yield path, getattr(item, "__func__", None)
    elif isinstance(item, functools.partial):
        yield from ((path, part) for part in (item.func, item.args, item.keywords))
    elif isinstance(item, staticmethod | classmethod):
        yield path, item.__func__
    elif isinstance(item, _CACHE):
        yield from ((f"{path}(cache)", part) for part in gc.get_referents(item))
    elif isinstance(item, Tensor):
        yield f"{path}.grad", item.grad if item.is_leaf else None
        yield f"{path}._backward_hooks", gradient_hooks(item)
        yield f"{path}._post_accumulate_grad_hooks", post_accumulate_hooks(item)
        yield from _of_object(path, item)
    else:
        yield from _of_object(path, item)
        yield from _of_class(path, type(item), seen)


def _of_object(path: str, item: Any) -> Iterator[tuple[str, Any]]:
    """Attributes, also those in slots; the children and buffers of a module without the dict that they lie in."""
    attributes = dict(getattr(item, "__dict__", ()))
    for cls in type(item).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if isinstance(vars(cls).get(name), types.MemberDescriptorType) and hasattr(item, name):
                attributes[name] = getattr(item, name)
    if isinstance(item, nn.Module):
        for store in ("_modules", "_parameters", "_buffers"):
            if isinstance(attributes.get(store), dict):
                attributes |= attributes.pop(store)
    for name, value in attributes.items():
        linked = path.endswith(f".{name}") and not isinstance(item, nn.Module)  # x.next.next.next is one place
        yield (path if linked else f"{path}.{name}"), value


def _of_class(path: str, of: type, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Attributes of the user's own classes, which all instances share, and the methods."""
    for cls in of.__mro__:
        if id(cls) in seen or not _is_users(cls.__module__):
            continue
        seen.add(id(cls))
        for name, value in list(vars(cls).items()):
            callables = (types.FunctionType, staticmethod, classmethod, _CACHE)
            if not name.startswith("__") and (isinstance(value, callables) or not hasattr(type(value), "__get__")):
                yield f"{path}.{name}", value


def _of_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Closure, defaults and attributes, and the containers among the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{path}.{name}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield path, function.__defaults__
    yield from ((f"{path}.{name}", value) for name, value in (function.__kwdefaults__ or {}).items())
    yield from ((f"{path}.{name}", value) for name, value in vars(function).items())
    if _is_users(function.__module__):
        for name in function.__code__.co_names:
            if isinstance(value := function.__globals__.get(name), _GLOBALS):
                yield f"{function.__module__}.{name}", value


def _is_users(module: str | None) -> bool:
    first = (module or "").partition(".")[0]
    return first not in _LIBRARIES and (first == "__main__" or first not in sys.stdlib_module_names)
