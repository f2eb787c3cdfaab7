"""Submodules, parameters and buffers by name, also where modules are nested thousands deep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from stopgrad.cuts.torch_internals import children_of

NAMES = 8  # under how many names a module that hangs in several places is given


def walk(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module below ``root`` and itself, with its dotted name, parents first.

    ``named_modules`` recurses, and ends at Python's limit of some 1,000 levels; this does not. A module that hangs in
    several places is given with each name, up to 8 of them.
    """
    given: Counter[int] = Counter()
    stack = [(prefix, root)]
    while stack:
        path, module = stack.pop()
        given[id(module)] += 1
        yield path, module
        children = [(joined(path, name), child) for name, child in children_of(module)]
        stack += [(name, child) for name, child in reversed(children) if given[id(child)] < NAMES]


def parameters_in(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, Tensor]]:
    """``(dotted name, the module that owns it, the parameter)``, under every name that it has."""
    for path, module in walk(root, prefix):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield joined(path, name), module, parameter


def buffers_in(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, Tensor]]:
    """``(dotted name, the module that owns it, the buffer)``, under every name that it has."""
    for path, module in walk(root, prefix):
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            yield joined(path, name), module, buffer


def strays_in(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters in plain lists, tuples and dicts of modules, which ``root.parameters()`` does not give."""
    kinds = (list, tuple, dict, nn.Module, nn.Parameter)
    seen: set[int] = set()
    for path, module in walk(root, prefix):
        stack = [(joined(path, name), value) for name, value in vars(module).items() if name not in _OWN]
        stack = [(name, value) for name, value in stack if isinstance(value, list | tuple | dict)]
        while stack:
            name, item = stack.pop()
            if isinstance(item, nn.Parameter):
                yield name, item
            elif isinstance(item, nn.Module):
                yield from ((inner, parameter) for inner, _, parameter in parameters_in(item, name))
            elif id(item) not in seen:
                seen.add(id(item))
                entries = item.items() if isinstance(item, dict) else enumerate(item)
                stack += [(f"{name}[{key!r}]", value) for key, value in entries if isinstance(value, kinds)]


_OWN = ("_parameters", "_buffers", "_modules")


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def listed(roots: Any, *also: type) -> Any:
    """The same, with what can be read only once (``module.parameters()``) as lists."""
    if not isinstance(roots, Mapping):
        return roots
    keep = (nn.Module, Tensor, Mapping, list, tuple, *also)
    return {name: part if isinstance(part, keep) else list(part) for name, part in roots.items()}


def leaves(roots: Any, *also: type) -> Iterator[tuple[str, Any]]:
    """The modules, tensors and what is of the types ``also``, with their names; "" for a module given alone.

    Raises:
        TypeError: something else is among them.
    """
    stack: list[tuple[str, Any]] = [("", roots)] if isinstance(roots, nn.Module) else list(roots.items())[::-1]
    while stack:
        name, part = stack.pop()
        if isinstance(part, (nn.Module, Tensor, *also)):
            yield name, part
        elif isinstance(part, Mapping):
            stack += [(f"{name}.{key}", value) for key, value in part.items()][::-1]
        elif isinstance(part, list | tuple):
            stack += [(f"{name}[{i}]" if len(part) > 1 else name, value) for i, value in enumerate(part)][::-1]
        else:
            raise TypeError(f"{name!r} holds a {type(part).__name__}; pass modules and parameters")
