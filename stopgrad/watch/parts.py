"""The parts of a script's models: who holds which parameter, by the names of the script's own variables."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Sequence, Set
from typing import Any

from torch import Tensor, nn

from stopgrad.flow.lookup import has_parameters, parameters_of
from stopgrad.flow.parts import below, unwrapped
from stopgrad.watch.names import loop_variables, modules_of, spaces


class Parts:
    """Names for modules and parameters, found in the script's frames while it runs.

    It keeps the networks alive that were there when it looked last, since the rules ask at the end, when ``main()`` may
    have returned; those that nobody else holds by then are let go when it looks again.
    """

    def __init__(self) -> None:
        self.declared: dict[str, Sequence[Tensor]] = {}  # parts that the program has said itself
        self._named: dict[str, nn.Module] = {}
        self._weak: set[str] = set()  # names of a class or a loop's variable, which give way to others
        self._tensors: dict[int, tuple[str, Any]] = {}
        self.loose: set[str] = set()  # names of what no module holds, or none that is alive
        self.listed: set[str] = set()  # names of modules in a plain list, or dict, of a module
        self.aliases: dict[tuple[str, str], weakref.ref[nn.Module]] = {}  # two names of one module in one namespace

    def look(self) -> None:
        """Note the modules, and the tensors that require grad, of the frames that run now."""
        self._let_go()
        for frame, space in spaces():
            first: dict[int, str] = {}
            for name, module in modules_of(space):
                if name == "self":
                    continue
                self.add(name, module, weak=name in loop_variables(frame.f_code.co_filename))
                if first.setdefault(id(module), name) != name:
                    self.aliases[first[id(module)], name] = weakref.ref(module)
            for name, value in list(space.items()):
                if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                    self._tensors.setdefault(id(value), (name, weakref.ref(value)))
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                self.add(type(owner).__name__, owner, weak=True)
        self._look_into_lists()

    def _let_go(self) -> None:
        for name in [name for name, module in self._named.items() if _is_only_ours(module)]:
            del self._named[name]
            self._weak.discard(name)

    def _look_into_lists(self) -> None:
        """Modules in a plain list of a module are in nobody's parameters."""
        for name, root in list(self.roots().items()):
            for path, module in root.named_modules():
                held = {k: v for k, v in vars(module).items() if isinstance(v, list | tuple | dict) and k[:1] != "_"}
                for inner, loose in modules_of(held):
                    full = ".".join(filter(None, (name, path, inner)))
                    if not any(loose is m for m in root.modules()):
                        self.add(full, loose)
                        self.listed.add(full)

    def add(self, name: str, module: nn.Module, weak: bool = False) -> None:
        """Name a module, unless it has a name; two modules are never called the same."""
        module = unwrapped(module)
        known = next((name for name, named in self._named.items() if named is module), None)
        if not has_parameters(module) or (known is not None and (weak or known not in self._weak)):
            return
        if known is not None:
            del self._named[known]
            self._weak.discard(known)
        if weak and any(module in set(named.modules()) for named in self._named.values()):
            return
        named = self._named.get(name)
        if named is not None and _only_wraps(module, named):
            return
        unique, count = name, 1
        while unique in self._named:
            count += 1
            unique = f"{name}#{count}"
        self._named[unique] = module
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
        found = {id(p): p for module in self.roots().values() for p in parameters_of(module)}
        found.update((id(t), t) for _, ref in self._tensors.values() if (t := ref()) is not None and t.requires_grad)
        return list(found.values())

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers of all named modules."""
        return self.parameters() + [b for module in self.roots().values() for b in module.buffers()]

    def names(self) -> dict[str, nn.Module]:
        """All named modules that are alive, also those that lie in others."""
        return dict(self._named)

    def of(
        self, parameters: Iterable[Tensor], groups: Sequence[Set[int]] = (), depth: int = 1
    ) -> dict[str, list[Tensor]]:
        """The given parameters by part: a root module; its children where it is alone, or divided among optimisers.

        What no module holds is named by its variable.

        Args:
            groups: ids of the parameters of each optimiser.
            depth: so many levels of modules down in each root, where it is more than 1.
        """
        wanted = {id(p): p for p in parameters}
        found: dict[str, list[Tensor]] = {}
        for name, each in self.declared.items():
            own = [wanted.pop(id(p)) for p in each if id(p) in wanted]
            found.update({name: own} if own else {})
        parts: dict[str, list[Tensor]] = {}
        roots = {n: m for n, m in self.roots().items() if any(id(p) in wanted for p in parameters_of(m))}
        for name, root in roots.items():
            shared = [keys & {id(p) for p in parameters_of(root)} for keys in groups]
            several = len({frozenset(keys) for keys in shared if keys}) > 1
            if not several and len(roots) > 1 and depth == 1:
                parts[name] = parameters_of(root)
                continue
            for inner, each in below(name, root, depth).items():
                parts[inner if inner == name or inner not in {*parts, *roots} else f"{name}.{inner}"] = [*each.values()]
        for name, each in parts.items():
            for p in each:
                if id(p) in wanted:
                    found.setdefault(name, []).append(wanted.pop(id(p)))
        for key, p in wanted.items():
            name, ref = self._tensors.get(key, ("", lambda: None))
            name = name if ref() is p else "others"
            self.loose.add(name)
            found.setdefault(name, []).append(p)
        return found


def _only_wraps(module: nn.Module, inner: nn.Module) -> bool:
    """Whether a module holds another one, and no parameter beside it: what an ODE solver makes of a function."""
    return inner in set(module.modules()) and len(parameters_of(module)) == len(parameters_of(inner))


def _is_only_ours(module: nn.Module) -> bool:
    """Whether nobody but the dict of names, the caller's two variables and this call hold a module."""
    return sys.getrefcount(module) <= 5
