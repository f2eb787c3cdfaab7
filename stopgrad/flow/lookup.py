"""The submodules and parameters of a model by their dotted names, also by wildcards, and however deep they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from stopgrad.cuts.strategies import nearest
from stopgrad.cuts.torch_internals import tree_leaves
from stopgrad.flow.frames import modules_in_sight

Modules = nn.Module | Mapping[str, Any]
Named = dict[str, Tensor]  # parameters by their dotted names


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


def parameters_of(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    """What a module has registered, whatever its class understands by ``parameters()``."""
    return [p for _, p in nn.Module.named_parameters(module, recurse=recurse)]


def every_name(root: nn.Module) -> list[tuple[str, Tensor]]:
    """The same; what is tied comes under each of its names, but in modules that are nested too deeply for torch."""
    try:
        return list(root.named_parameters(remove_duplicate=False))
    except RecursionError:
        return list(named_parameters(root))


def has_parameters(module: nn.Module) -> bool:
    return next(named_parameters(module), None) is not None


def named_in(name: str, holder: nn.Module | Tensor) -> Named:
    if isinstance(holder, Tensor):
        return {name: holder}
    return {f"{name}.{inner}": p for inner, p in every_name(holder)}


class Lookup:
    """The submodules and parameters of some modules by dotted names.

    Args:
        modules: a module, or named modules and parameters.
        path: names below this one are also known without it, and told so.

    Attributes:
        picked: the parts that were given by names.
    """

    def __init__(self, modules: Modules, path: str = "") -> None:
        self._modules = modules
        self._prefix = f"{path}." if path else ""
        self.picked: set[str] = set()

    @cached_property
    def _all(self) -> dict[str, nn.Module | Tensor]:
        found: dict[str, nn.Module | Tensor] = {}
        roots = {"": self._modules} if isinstance(self._modules, nn.Module) else self._modules
        for name, root in roots.items():
            if isinstance(root, nn.Module):
                each = [*named_modules(root), *every_name(root)]
                full = ((".".join(filter(None, (name, inner))), held) for inner, held in each)
                found |= {name.removeprefix(self._prefix): held for name, held in full if name}
            elif isinstance(root, Tensor):
                found[name] = root
        return found

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in reversed(list(self._all.items())) if isinstance(p, Tensor)}

    def select(self, pattern: str) -> list[str]:
        """The names that a pattern stands for: an exact one, or the outermost that match and have parameters."""
        exact = pattern.removeprefix(self._prefix)
        if exact in self._all:
            return [exact] if _held(self._all[exact]) else []
        hits = {name for name in self._all if fnmatchcase(name, pattern) or fnmatchcase(self._prefix + name, pattern)}
        inner = {name for name in hits if any(above in hits for above in _above(name))}
        return [name for name, held in self._all.items() if name in hits - inner and _held(held)]

    def named(self, name: str) -> Named:
        return {inner.removeprefix(self._prefix): p for inner, p in named_in(name, self._all[name]).items()}

    def asked(self, names: Iterable[str], known: set[str]) -> list[str]:
        """The submodules and parameters that a contract asks for, but for what is known under that name."""
        unknown = [n for n in names if not n.startswith("stop.") and not any(fnmatchcase(part, n) for part in known)]
        return list(dict.fromkeys(name for pattern in unknown for name in self.select(pattern)))

    def chosen(self, parts: Mapping[str, Any] | Sequence[str]) -> dict[str, Named]:
        """Parts by names, each of its own; or by what is given for each."""
        __tracebackhide__ = True
        if isinstance(parts, Mapping):
            found = dict[str, Named]()
            for name, part in parts.items():
                found[name] = self.parameters(name, part)
        else:
            patterns = [parts] if isinstance(parts, str) else parts
            found = dict[str, Named]()
            for pattern in patterns:
                found |= {name: self.named(name) for name in self._matching(pattern, pattern)}
            self.picked.update(found)
        if not found:
            raise ValueError("audit: parts is empty; name at least one, or leave it out")
        return found

    def _matching(self, part: str, pattern: str) -> list[str]:
        __tracebackhide__ = True
        found = self.select(pattern)
        if not found:
            hint = nearest(pattern, self._all)
            raise ValueError(f"audit: part {part!r}: nothing with parameters is called {pattern!r}{hint}")
        self.picked.add(part)
        return found

    def parameters(self, part: str, given: Any) -> Named:
        """The parameters of one part as given: modules, parameters, dotted names, nested lists and dicts of them."""
        __tracebackhide__ = True
        found: Named = {}
        loose: Named = {}
        for name, leaf in _leaves(part, given):
            if isinstance(leaf, str):
                for each in self._matching(part, leaf):
                    found |= self.named(each)
            elif isinstance(leaf, nn.Module):
                found |= named_in(name, leaf)
            elif not isinstance(leaf, Tensor):
                raise TypeError(f"audit: part {part!r} holds a {type(leaf).__name__}; pass modules or parameters")
            elif not leaf.is_leaf:
                raise TypeError(
                    f"audit: part {part!r} holds a tensor that was computed; pass the parameters themselves"
                )
            elif name == part:
                found[name] = leaf
            else:
                loose[name] = leaf
        found |= self._with_names(loose)
        if not found:
            raise ValueError(f"audit: part {part!r} has no parameters")
        return found

    def _with_names(self, loose: Named) -> Named:
        """Parameters that were handed over in lists, by their names in the model; else in one that the caller holds."""
        known = {id(p): self._names[id(p)] for p in loose.values() if id(p) in self._names}
        sight = modules_in_sight() if len(known) < len(loose) else ()
        for module in sight:
            known |= {id(p): name for name, p in named_parameters(module) if id(p) not in known}
            if all(id(p) in known for p in loose.values()):
                break
        return {known.get(id(p), name): p for name, p in loose.items()}


def _above(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _held(holder: nn.Module | Tensor) -> bool:
    return isinstance(holder, Tensor) or has_parameters(holder)


def _leaves(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested containers, with their names: generators such as ``module.parameters()`` count as lists."""
    if not isinstance(part, Tensor | nn.Module | str | Mapping | list | tuple):
        part = list(part)
    stack = [(name, part)]
    while stack:
        at, each = stack.pop()
        if isinstance(each, Mapping):
            stack += reversed([(f"{at}.{key}", value) for key, value in each.items()])
        elif isinstance(each, list | tuple):
            stack += reversed([(f"{at}[{i}]" if len(each) > 1 else at, value) for i, value in enumerate(each)])
        elif isinstance(each, Tensor | nn.Module | str) or (inner := tree_leaves(each)) == [each]:
            yield at, each
        else:
            stack.append((at, inner))
