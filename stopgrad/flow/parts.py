"""The parts of a model: named sets of parameters, from a module, from nested lists and dicts, or by dotted names.

A module is looked into until it says something: wrappers and modules that are alone in another are passed through, and
a part that has both parameters that are trained and frozen ones is two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stopgrad.cuts.torch_internals import tree_leaves
from stopgrad.flow.lookup import Lookup, Modules, Named, has_parameters, named_in, named_modules, named_parameters

FROZEN, TRAINED = " (frozen)", " (trained)"  # what follows the name of a part that is one half of a module
_INSIDE = ("module", "_orig_mod", "base_model", "model")  # where a wrapper holds what it wraps
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel"}


# ---- what a module is looked into


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, torch.compile and PEFT's wrappers."""
    while (inner := _inside(module)) is not None:
        module = inner[1]
    return module


def _inside(module: nn.Module) -> tuple[str, nn.Module] | None:
    """What a wrapper holds, and its name there; None for other modules, and where the wrapper has more parameters."""
    kind = type(module)
    if kind.__name__ not in _WRAPPERS and not kind.__module__.startswith("peft."):
        return None
    children = dict(module.named_children())
    name = next((name for name in _INSIDE if name in children), None)
    if name is None or {id(p) for _, p in named_parameters(module)} != {
        id(p) for _, p in named_parameters(children[name])
    }:
        return None
    return name, children[name]


def descended(module: nn.Module) -> tuple[str, nn.Module]:
    """The first module on the way down that has more than one part, and its dotted name: "" where it is the module.

    Where none has, or they are numbered, as in a Sequential, it is what the wrappers hold: "0" says less than "net".
    """
    path: list[str] = []
    while (inner := _inside(module)) is not None:
        path.append(inner[0])
        module = inner[1]
    found, at = module, list(path)
    while True:
        level = _level(found)
        if len(level) > 1 and not (len(at) > len(path) and _numbered(level)):
            return ".".join(at), found
        name, only = next(iter(level.items()), ("", None))
        if len(level) != 1 or not isinstance(only, nn.Module) or next(only.children(), None) is None:
            return ".".join(path), module
        at.append(name)
        found = only
        while (inner := _inside(found)) is not None:
            at.append(inner[0])
            found = inner[1]


def _numbered(names: Iterable[str]) -> bool:
    return any(name.isdigit() for name in names)


def below(name: str, module: nn.Module) -> dict[str, Named]:
    """The parts of a module that has a name: as :func:`find_parts` finds them, and itself where they are numbered."""
    _, root = descended(module)
    level = _level(root)
    is_looked_into = len(level) > 1 and not _numbered(level) and next(root.children(), None) is not None
    held = level if is_looked_into else {name: root}
    return halves({part: named_in(part, holder) for part, holder in held.items()}, adapters(root))


def _level(root: nn.Module) -> dict[str, nn.Module | Tensor]:
    own: dict[str, nn.Module | Tensor] = dict(root.named_parameters(recurse=False))
    return own | {name: child for name, child in root.named_children() if has_parameters(child)}


def _deeper(held: Mapping[str, Any]) -> dict[str, Any]:
    """One level further down, but for what has no modules inside."""
    found: dict[str, Any] = {}
    for name, holder in held.items():
        inside = _level(holder) if isinstance(holder, nn.Module) and next(holder.children(), None) is not None else {}
        found |= {f"{name}.{inner}": each for inner, each in inside.items()} or {name: holder}
    return found


# ---- the parts


@dataclass(frozen=True)
class Parts:
    """The parts of a model.

    Attributes:
        tensors: the parameters of each part, each once.
        names: the name of each parameter, by ``id``; what is tied shows all of its: ``embed.weight = head.weight``.
        unions: other names for parts, or for several together: of the module that they are the parts of.
        tied: for each part, the names of the parameters that it shares, by the part with which.
    """

    tensors: dict[str, list[Tensor]]
    names: dict[int, str]
    unions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tied: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, name: str) -> list[Tensor]:
        """The parameters of a part, or of a union; [] where there is none of this name."""
        return [t for part in self.unions.get(name, (name,)) for t in self.tensors.get(part, ())]


def find_parts(
    modules: Modules,
    parts: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    depth: int = 1,
    asked: Iterable[str] = (),
) -> Parts:
    """The parts of a model.

    A module's parts are its children, and parameters of its own. It is descended first (see :func:`descended`), and a
    part of which some parameters require grad and others do not is two, ``NAME (frozen)`` and ``NAME (trained)``. With
    PEFT's adapters inside there is the base and each kind of adapter instead: ``base (frozen)``, ``lora (trained)``.

    Args:
        modules: a module, or ``{name: module, parameter, or nested lists and dicts of them}``.
        parts: instead: dotted names of submodules and parameters, or wildcards (each of the outermost that match is a
            part), or ``{name: such names, modules or parameters}``.
        depth: so many levels of modules down.
        asked: names that a contract asks for: those of submodules and parameters become parts beside the others.

    Raises:
        ValueError: no part, a part without parameters, or a name that nothing has.
        TypeError: a part that holds something other than modules, tensors and names.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    if depth < 1:
        raise ValueError(f"audit: depth={depth}: choose a number from 1")
    path, root = descended(modules) if isinstance(modules, nn.Module) else ("", nn.Module())
    look = Lookup(modules, path)
    if parts is not None:
        found = look.chosen(parts)
    elif isinstance(modules, nn.Module):
        held = _level(root)
        if not held:
            raise ValueError(f"audit: {type(modules).__name__} has no parameters")
        kinds = adapters(root) if depth == 1 else {}
        for _ in range(depth - 1):
            held = _deeper(held)
        found = halves({name: named_in(name, holder) for name, holder in held.items()}, kinds)
        look.picked.update(found)
    else:
        if not modules:
            raise ValueError("audit: no parts; pass a module or {name: module or parameters}")
        held = dict(modules)
        for _ in range(depth - 1):
            held = _deeper(held)
        found = {name: look.parameters(name, part) for name, part in held.items()}
    unions = _unions(found, path) if parts is None else {}
    more = {name: look.named(name) for name in look.asked(asked, {*found, *unions})}
    unions |= {f"{path}.{name}": (name,) for name in ({**found, **more} if path else {})}
    return _finished(found, more, unions, look.picked)


def parts_of(modules: Modules) -> dict[str, list[Tensor]]:
    """The parameters of each part, each once; see :func:`find_parts`."""
    return find_parts(modules).tensors


def _finished(
    found: dict[str, Named], more: dict[str, Named], unions: dict[str, tuple[str, ...]], picked: set[str]
) -> Parts:
    tensors = {part: list({id(t): t for t in each.values()}.values()) for part, each in (found | more).items()}
    names: dict[int, dict[str, None]] = {}
    homes: dict[int, list[tuple[str, str]]] = {}
    for part, each in found.items():
        for name, tensor in each.items():
            names.setdefault(id(tensor), {})[name] = None
            homes.setdefault(id(tensor), []).append((part, name))
    for each in more.values():
        for name, tensor in each.items():
            names.setdefault(id(tensor), {}).setdefault(name)
    shown = {key: " = ".join(each) for key, each in names.items()}
    tied: dict[str, dict[str, str]] = {}
    for key, places in homes.items():
        for part, name in places if len(places) > 1 else ():
            for other, another in places:
                if other != part and (name != another or not {part, other} <= picked):
                    tied.setdefault(part, {}).setdefault(other, shown[key])
    return Parts(tensors, shown, unions, tied)


def adapters(root: nn.Module) -> dict[int, str]:
    """The kind of each parameter of PEFT's adapters, ``lora`` as a rule, by ``id``."""
    found: dict[int, str] = {}
    for _, module in named_modules(root):
        kinds = getattr(module, "adapter_layer_names", None) if type(module).__module__.startswith("peft.") else None
        if kinds:
            kind = kinds[0] if len(kinds) == 1 else kinds[0].partition("_")[0]
            each = [child for name, child in module.named_children() if name in kinds]
            found |= {id(p): kind for child in each for _, p in named_parameters(child)}
    return found


def halves(parts: dict[str, Named], kinds: Mapping[int, str]) -> dict[str, Named]:
    """What is trained and what is frozen, apart; with ``kinds`` of adapters, they and the base instead of the parts."""
    if kinds:
        by_kind: dict[str, Named] = {}
        for each in parts.values():
            for name, p in each.items():
                by_kind.setdefault(kinds.get(id(p), "base"), {})[name] = p
        parts = by_kind
    found: dict[str, Named] = {}
    for part, each in parts.items():
        frozen = {name: p for name, p in each.items() if not p.requires_grad}
        trained = {name: p for name, p in each.items() if p.requires_grad}
        apart = {part + half: those for half, those in ((FROZEN, frozen), (TRAINED, trained)) if those}
        found |= apart if kinds or len(apart) > 1 else {part: each}
    return found


def _unions(parts: Iterable[str], path: str) -> dict[str, tuple[str, ...]]:
    """Names that stand for parts: the module above several, that of two halves, and all with the way down to them."""
    found: dict[str, dict[str, None]] = {}
    every = list(parts)
    for part in every:
        whole = part.removesuffix(FROZEN).removesuffix(TRAINED)
        steps = whole.split(".")
        above = [".".join(steps[:i]) for i in range(1, len(steps) + 1)]
        for name in [*above, *(f"{path}.{name}" for name in above if path)]:
            found.setdefault(name, {})[part] = None
    steps = path.split(".") if path else []
    for i in range(1, len(steps) + 1):
        found.setdefault(".".join(steps[:i]), dict.fromkeys(every))
    return {name: tuple(each) for name, each in found.items() if name not in every}


# ---- the modules themselves


def modules_in(modules: Modules) -> list[nn.Module]:
    """The modules themselves, whose buffers and training modes are part of what an audit leaves alone."""
    if isinstance(modules, nn.Module):
        return [modules]
    return [leaf for part in modules.values() for leaf in tree_leaves(part) if isinstance(leaf, nn.Module)]


def module_names(modules: Modules) -> dict[nn.Module, str]:
    """The dotted name of each module that has parameters, the first where it has several."""
    roots = dict(descended(modules)[1].named_children()) if isinstance(modules, nn.Module) else modules
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
