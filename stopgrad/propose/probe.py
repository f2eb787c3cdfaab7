"""What probed code calls: every use of a value gets a value of its own, and each statement notes what it computes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stopgrad.cuts.torch_internals import functorch_level, without_overrides
from stopgrad.cuts.watcher import watcher
from stopgrad.flow.sites import Recorder, recorder

T = TypeVar("T")
Key = tuple[str, int]  # a file, and the number of a site in it

names: dict[Key, tuple[str, ...]] = {}  # the dotted names in each statement
frozen: dict[int, Key] = {}  # by id of a tensor, what set its requires_grad to False


@dataclass
class Notes:
    """What was noted while one recorder was on.

    Attributes:
        uses: vertex -> the expression whose value it is, and how many of the script's statements ran around it.
        ran: (statement, first vertex, last vertex + 1, statements around it) of each time that it ran.
        blocks: (block, first, last + 1) of what ran in a mode without gradients.
        stops: vertex -> the expression that cut there.
        modules: (statement, first, last + 1, statements around it, name of a module there, its parameters' vertices,
            whether all of these require grad).
    """

    of: Recorder | None = None
    uses: dict[int, tuple[Key, int]] = field(default_factory=dict)
    ran: list[tuple[Key, int, int, int]] = field(default_factory=list)
    blocks: list[tuple[Key, int, int]] = field(default_factory=list)
    stops: dict[int, Key] = field(default_factory=dict)
    modules: list[tuple[Key, int, int, int, str, frozenset[int], bool]] = field(default_factory=list)


_notes = Notes()
_running: list[tuple[Key, Recorder | None, int]] = []


def notes() -> Notes:
    """Those of the recorder that is on."""
    global _notes
    on = recorder()
    if on is not _notes.of:
        _notes = Notes(on)
    return _notes


def forget() -> None:
    """Let go of the recorder whose notes were read."""
    global _notes
    _notes = Notes()


def value(tensor: T, file: str, line: int, index: int, leaf: bool) -> T:
    """The value of an expression, as a vertex of its own while a recorder is on."""
    on = recorder()
    if on is None or not isinstance(tensor, Tensor) or not torch.is_grad_enabled() or functorch_level() is not None:
        return tensor
    if type(tensor) not in (Tensor, nn.Parameter):
        return tensor
    with without_overrides():
        if not tensor.requires_grad or (tensor.is_leaf and not leaf):
            return tensor
    alias, vertex = on.use(tensor, (file, line))
    if vertex < 0:
        return tensor
    object.__setattr__(alias, _ROOT, getattr(tensor, _ROOT, tensor))
    notes().uses[vertex] = (file, index), len(_running) - 1
    return alias  # pyright: ignore[reportReturnType]


_ROOT = "_stopgrad_alias_of"


def own(tensors: Any) -> Any:
    """The tensors themselves, in the place of their aliases: whose gradient is asked for."""
    if isinstance(tensors, Tensor):
        return getattr(tensors, _ROOT, tensors)
    return type(tensors)(map(own, tensors)) if type(tensors) in (list, tuple) else tensors


def part(crossing: T, name: str) -> T:
    """A value that is a part by itself, as what crosses a boundary is."""
    watch = watcher()
    if watch is None or not isinstance(crossing, Tensor):
        return crossing
    return watch.gate(name, crossing, lambda leaf: leaf)  # pyright: ignore[reportReturnType]


def stop(result: T, file: str, index: int) -> T:
    """An expression has cut."""
    on = recorder()
    if on is not None and isinstance(result, Tensor):
        with without_overrides():
            vertex = on.value(result)
        if vertex is not None:
            notes().stops[vertex] = file, index
    return result


def flag(owner: Any, file: str, index: int) -> Any:
    """``requires_grad`` of a tensor, or of a module's, is False from here on."""
    tensors = owner.parameters() if isinstance(owner, nn.Module) else [owner]
    frozen.update((id(tensor), (file, index)) for tensor in tensors if isinstance(tensor, Tensor))
    return owner


def enter(file: str, index: int) -> None:
    """A statement, or a block, begins."""
    on = recorder()
    _running.append(((file, index), on, 0 if on is None else len(on.values)))


def leave(file: str, index: int, is_block: bool) -> None:
    """It ends."""
    key = file, index
    at = next((i for i in range(len(_running) - 1, -1, -1) if _running[i][0] == key), None)
    if at is None:  # of a generator whose caller has left
        return
    _, began, first = _running[at]
    del _running[at:]
    on = recorder()
    if on is None:
        return
    first, last = (first if began is on else on.values.roots), len(on.values)
    if is_block:
        notes().blocks.append((key, first, last))
    elif last > first:
        notes().ran.append((key, first, last, at))
        if torch.is_grad_enabled():
            _note_modules(on, (key, first, last, at), sys._getframe(1))


def _note_modules(on: Recorder, ran: tuple[Key, int, int, int], frame: FrameType) -> None:
    """The modules in sight whose parameters the statement has used."""
    values, (key, first, last, _) = on.values, ran
    roots = set(on.tensors.roots.values()) | set(range(values.roots))
    used = roots & set(values.parents[values.first[first] : values.first[last]])
    if not used:
        return
    seen: set[int] = set()
    for name, module in _modules_in(frame, names.get(key, ())):
        if id(module) in seen:
            continue
        seen.add(id(module))
        with without_overrides():
            parameters = [p for p in module.parameters() if id(p) in on.tensors.roots]
            own = frozenset(on.tensors.roots[id(p)] for p in parameters) & used
            if own:
                whole = all(p.requires_grad for p in module.parameters())
                notes().modules.append((*ran, name, own, whole))


def _modules_in(frame: FrameType, mentioned: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Those that a statement names, then those that variables of its function hold."""
    found = [(name, module) for name in mentioned if isinstance(module := _looked_up(frame, name), nn.Module)]
    owner = frame.f_locals.get("self")
    spaces: list[tuple[str, Mapping[str, Any]]] = [("", frame.f_locals), ("", frame.f_globals)]
    spaces.append(("self.", _held(owner)))
    for prefix, space in spaces:
        found += [(prefix + name, m) for name, m in list(space.items()) if isinstance(m, nn.Module)]
    for name, module in list(found):
        found += [(f"{name}.{inner}", m) for inner, m in module.named_modules() if _can_be_written(inner)]
    return found


def _can_be_written(path: str) -> bool:
    """A submodule's dotted name is what a source would write, and not far down."""
    steps = path.split(".")
    return len(steps) <= 2 and all(step.isidentifier() for step in steps)


def _looked_up(frame: FrameType, name: str) -> Any:
    """What a dotted name stands for, without running a property."""
    first, *rest = name.split(".")
    found = frame.f_locals.get(first, frame.f_globals.get(first))
    for attribute in rest:
        found = _held(found).get(attribute)
    return found


def _held(owner: Any) -> Mapping[str, Any]:
    """What an object holds by name, a module its submodules too."""
    held = getattr(owner, "__dict__", {})
    return {**held, **dict(owner.named_children())} if isinstance(owner, nn.Module) else held
