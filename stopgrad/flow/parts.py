"""The parts of a model: named sets of parameters, from a module, or from nested lists and dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from stopgrad.cuts.torch_internals import tree_leaves

Modules = nn.Module | Mapping[str, Any]


def named_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and all inside it with their dotted names, in torch's order, however deep they are nested."""
    seen: set[nn.Module] = set()
    stack = [("", root)]
    while stack:
        name, module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        yield name, module
        prefix = f"{name}." if name else ""
        stack += reversed([(prefix + key, child) for key, child in module.named_children()])


def named_parameters(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a module and of all inside it, each once, with their dotted names."""
    for name, module in named_modules(root):
        prefix = f"{name}." if name else ""
        yield from ((prefix + key, p) for key, p in module.named_parameters(recurse=False))


def every_name(root: nn.Module) -> list[tuple[str, Tensor]]:
    """The same; what is tied comes under each of its names, but in modules that are nested too deeply for torch."""
    try:
        return list(root.named_parameters(remove_duplicate=False))
    except RecursionError:
        return list(named_parameters(root))


def parts_of(modules: Modules) -> dict[str, list[Tensor]]:
    """The parameters of each part, each once.

    A module's parts are its named children that have parameters, and parameters of its own by their names.

    Raises:
        ValueError: no part, or a part without parameters.
        TypeError: a part that holds something other than modules and tensors.
    """
    if isinstance(modules, nn.Module):
        parts: dict[str, Any] = dict(modules.named_parameters(recurse=False))
        parts |= {name: c for name, c in modules.named_children() if next(named_parameters(c), None) is not None}
        if not parts:
            raise ValueError(f"audit: {type(modules).__name__} has no parameters")
    else:
        parts = dict(modules)
        if not parts:
            raise ValueError("audit: no parts; pass a module or {name: module or parameters}")
    return {name: _parameters(name, part) for name, part in parts.items()}


def _parameters(name: str, part: Any) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for leaf in [part] if isinstance(part, nn.Module) else _leaves(part):
        if not isinstance(leaf, nn.Module | Tensor):
            raise TypeError(f"audit: part {name!r} holds a {type(leaf).__name__}; pass modules or parameters")
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            raise TypeError(f"audit: part {name!r} holds a tensor that was computed; pass the parameters themselves")
        inner = [leaf] if isinstance(leaf, Tensor) else [p for _, p in named_parameters(leaf)]
        found.update((id(t), t) for t in inner)
    if not found:
        raise ValueError(f"audit: part {name!r} has no parameters")
    return list(found.values())


def _leaves(part: Any) -> list[Any]:
    """Leaves of nested containers; generators such as ``module.parameters()`` count as lists."""
    return tree_leaves(part if isinstance(part, Tensor | Mapping | list | tuple) else list(part))


def modules_in(modules: Modules) -> list[nn.Module]:
    """The modules themselves, whose buffers and training modes are part of what an audit leaves alone."""
    if isinstance(modules, nn.Module):
        return [modules]
    return [leaf for part in modules.values() for leaf in tree_leaves(part) if isinstance(leaf, nn.Module)]


def names_of(modules: Modules, parts: Mapping[str, list[Tensor]]) -> dict[int, str]:
    """A name for each parameter, by ``id``; tied parameters show all of theirs: ``embed.weight = head.weight``."""
    names: dict[int, list[str]] = {}
    for name, tensors in parts.items():
        part = getattr(modules, name) if isinstance(modules, nn.Module) else modules[name]
        if isinstance(part, nn.Module):
            named = [(f"{name}.{inner}", p) for inner, p in every_name(part)]
        elif len(tensors) == 1:
            named = [(name, tensors[0])]
        else:
            named = [(f"{name}[{i}]", p) for i, p in enumerate(tensors)]
        for full, parameter in named:
            names.setdefault(id(parameter), []).append(full)
    return {key: " = ".join(dict.fromkeys(found)) for key, found in names.items()}


def module_names(modules: Modules) -> dict[nn.Module, str]:
    """The dotted name of each module that has parameters, the first where it has several."""
    roots = dict(modules.named_children()) if isinstance(modules, nn.Module) else modules
    names: dict[nn.Module, str] = {}
    for name, root in roots.items():
        each = list(named_modules(root)) if isinstance(root, nn.Module) else []
        holding = {path for path, module in each if next(module.named_parameters(recurse=False), None) is not None}
        for path, _ in reversed(each):  # what is inside comes after what it is inside of
            if path in holding and path:
                holding.add(path.rpartition(".")[0])
        for path, module in each:
            if path in holding:
                names.setdefault(module, f"{name}.{path}" if path else name)
    return names
