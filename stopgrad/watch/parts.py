"""The parts of a script's models: who holds which parameter, by the names of the script's own variables."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from stopgrad.flow.parts import below, unwrapped
from stopgrad.watch.names import modules_of, user_frames


class Parts:
    """Names for modules and parameters, found in the script's frames while it runs. It keeps none of them alive."""

    def __init__(self) -> None:
        self._named: dict[str, weakref.ref[nn.Module]] = {}
        self._tensors: dict[int, tuple[str, Any]] = {}

    def look(self) -> None:
        """Note the modules, and the tensors that require grad, of the frames that run now."""
        seen: set[int] = set()
        for frame in user_frames():
            spaces: list[Mapping[str, Any]] = [frame.f_locals]
            if frame.f_globals is not frame.f_locals:
                spaces.append(frame.f_globals)
            owner = frame.f_locals.get("self")
            if owner is not None and hasattr(owner, "__dict__"):
                spaces.insert(
                    1, {**vars(owner), **vars(owner).get("_modules", {}), **vars(owner).get("_parameters", {})}
                )
            for space in spaces:
                if id(space) in seen:
                    continue
                seen.add(id(space))
                for name, module in modules_of(space):
                    if name != "self":
                        self.add(name, module)
                for name, value in list(space.items()):
                    if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                        self._tensors.setdefault(id(value), (name, weakref.ref(value)))
            if isinstance(owner, nn.Module):
                self.add(type(owner).__name__, owner, weak=True)

    def add(self, name: str, module: nn.Module, weak: bool = False) -> None:
        """Name a module, unless it has a name; two modules are never called the same."""
        module = unwrapped(module)
        if next(module.parameters(), None) is None or any(ref() is module for ref in self._named.values()):
            return
        if weak and any(module in set(known.modules()) for ref in self._named.values() if (known := ref())):
            return
        unique, count = name, 1
        while unique in self._named and self._named[unique]() is not None:
            count += 1
            unique = f"{name}#{count}"
        self._named[unique] = weakref.ref(module)

    def roots(self) -> dict[str, nn.Module]:
        """The named modules that lie in no other named module."""
        alive = {name: module for name, ref in self._named.items() if (module := ref()) is not None}
        inner = {id(sub) for module in alive.values() for sub in module.modules() if sub is not module}
        roots = {name: module for name, module in alive.items() if id(module) not in inner}
        return roots or alive

    def of(self, parameters: Iterable[Tensor]) -> dict[str, list[Tensor]]:
        """The given parameters by part: a root module, or its children where there is one root alone.

        What no module holds is named by its variable.
        """
        wanted = {id(p): p for p in parameters}
        homes = self.roots()
        held = {name: m for name, m in homes.items() if any(id(p) in wanted for p in m.parameters())}
        parts = {name: list(module.parameters()) for name, module in held.items()}
        if len(held) == 1:
            parts = {part: list(each.values()) for part, each in below(*next(iter(held.items()))).items()}
        found: dict[str, list[Tensor]] = {}
        for name, each in parts.items():
            for p in each:
                if id(p) in wanted:
                    found.setdefault(name, []).append(wanted.pop(id(p)))
        for key, p in wanted.items():
            name, ref = self._tensors.get(key, ("", lambda: None))
            found.setdefault(name if ref() is p else "others", []).append(p)
        return found
