"""The parts of a script's models: who holds which parameter, by the names of the script's own variables."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from stopgrad.watch.names import modules_of, spaces

# What wraps a module and is looked through: the attribute that holds the module itself.
WRAPPERS = ("module", "_orig_mod", "base_model", "model")
_WRAPPER_TYPES = {"DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel"}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, torch.compile and PEFT's wrappers."""
    while True:
        kind = type(module)
        children = dict(module.named_children())
        if kind.__name__ in _WRAPPER_TYPES or kind.__module__.startswith("peft."):
            inner = next((children[name] for name in WRAPPERS if name in children), None)
            if inner is not None:
                module = inner
                continue
        return module


class Parts:
    """Names for modules and parameters, found in the script's frames while it runs. It keeps none of them alive."""

    def __init__(self) -> None:
        self._named: dict[str, weakref.ref[nn.Module]] = {}
        self._weak: set[str] = set()  # names after a class, which give way to a variable's
        self._tensors: dict[int, tuple[str, Any]] = {}
        self.loose: set[str] = set()  # names of what no module holds, or none that is alive
        self.aliases: dict[tuple[str, str], weakref.ref[nn.Module]] = {}  # two names of one module in one namespace

    def look(self) -> None:
        """Note the modules, and the tensors that require grad, of the frames that run now."""
        found = [(frame, space, list(modules_of(space))) for frame, space in spaces()]
        passing = _passing([pair for _, _, modules in found for pair in modules])
        for frame, space, modules in found:
            first: dict[int, str] = {}
            for name, module in modules:
                if name == "self" or (id(module) in passing and "[" not in name):
                    continue
                self.add(name, module)
                if first.setdefault(id(module), name) != name:
                    self.aliases[first[id(module)], name] = weakref.ref(module)
            for name, value in list(space.items()):
                if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                    self._tensors.setdefault(id(value), (name, weakref.ref(value)))
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                self.add(type(owner).__name__, owner, weak=True)

    def add(self, name: str, module: nn.Module, weak: bool = False) -> None:
        """Name a module, unless it has a name; two modules are never called the same."""
        module = unwrapped(module)
        known = next((name for name, ref in self._named.items() if ref() is module), None)
        if next(module.parameters(), None) is None or (known is not None and (weak or known not in self._weak)):
            return
        if known is not None:
            del self._named[known]
            self._weak.discard(known)
        if weak and any(module in set(known.modules()) for ref in self._named.values() if (known := ref())):
            return
        unique, count = name, 1
        while unique in self._named and self._named[unique]() is not None:
            count += 1
            unique = f"{name}#{count}"
        self._named[unique] = weakref.ref(module)
        if weak:
            self._weak.add(unique)

    def roots(self) -> dict[str, nn.Module]:
        """The named modules that lie in no other named module."""
        alive = self.names()
        inner = {id(sub) for module in alive.values() for sub in module.modules() if sub is not module}
        roots = {name: module for name, module in alive.items() if id(module) not in inner}
        return roots or alive

    def parameters(self) -> list[Tensor]:
        """Of all named modules, and the named tensors that require grad."""
        found = {id(p): p for module in self.roots().values() for p in module.parameters()}
        found.update((id(t), t) for _, ref in self._tensors.values() if (t := ref()) is not None and t.requires_grad)
        return list(found.values())

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers of all named modules."""
        return self.parameters() + [b for module in self.roots().values() for b in module.buffers()]

    def names(self) -> dict[str, nn.Module]:
        """All named modules that are alive, also those that lie in others."""
        return {name: module for name, ref in self._named.items() if (module := ref()) is not None}

    def of(self, parameters: Iterable[Tensor]) -> dict[str, list[Tensor]]:
        """The given parameters by part: a root module, or its children where there is one root alone.

        What no module holds is named by its variable.
        """
        wanted = {id(p): p for p in parameters}
        homes = self.roots()
        held = {name: m for name, m in homes.items() if any(id(p) in wanted for p in m.parameters())}
        if len(held) == 1:
            ((name, module),) = held.items()
            held = _descended(name, module)
        found: dict[str, list[Tensor]] = {}
        for name, holder in held.items():
            for p in holder.parameters() if isinstance(holder, nn.Module) else [holder]:
                if id(p) in wanted:
                    found.setdefault(name, []).append(wanted.pop(id(p)))
        for key, p in wanted.items():
            name, ref = self._tensors.get(key, ("", lambda: None))
            name = name if ref() is p else "others"
            self.loose.add(name)
            found.setdefault(name, []).append(p)
        return found


def _passing(found: list[tuple[str, nn.Module]]) -> set[int]:
    """The modules that a loop's variable names just now: of a list of several, the only one with a name of its own."""
    plain = {id(module) for name, module in found if "[" not in name}
    lists: dict[str, set[int]] = {}
    for name, module in found:
        if "[" in name:
            lists.setdefault(name.partition("[")[0], set()).add(id(module))
    return {key for keys in lists.values() if len(keys) > 1 and len(keys & plain) == 1 for key in keys & plain}


def _descended(name: str, module: nn.Module) -> dict[str, nn.Module | Tensor]:
    """The children of a module by their names, and its own parameters; through children that are alone."""
    while True:
        own = dict(module.named_parameters(recurse=False))
        children = {k: m for k, m in module.named_children() if next(m.parameters(), None) is not None}
        if not children or any(key.isdigit() for key in children):  # of a Sequential: "0" says nothing
            return {name: module}
        if own or len(children) > 1:
            return {**own, **children}
        ((name, module),) = children.items()
