"""Did anything that is called frozen move: parameters, buffers, optimiser state; by how much, and why."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stopgrad.audits.calls import Calls
from stopgrad.audits.calls import train_eval_gap as train_eval_gap
from stopgrad.audits.tree import buffers_in, leaves, listed, parameters_in, walk
from stopgrad.audits.writes import Watched, Writers, moved, plain
from stopgrad.cuts.torch_internals import base_of, non_persistent
from stopgrad.flow.lookup import parameters_of
from stopgrad.flow.parts import Modules, modules_in

_WORDS = {
    "parameter": "parameter {} moved by {:.2g}",
    "buffer": "buffer {} moved by {:.2g}",
    "optimizer": "optimizer {} moved by {:.2g}",
    "replaced": "parameter {} was replaced, and its values are off by {:.2g}",
    "added": "parameter {} was added",
    "removed": "parameter {} was removed",
    "dropout": "{} is not still, by {:.2g}",
}


@dataclass(frozen=True)
class Drift:
    """Something frozen that is not as it was.

    Attributes:
        kind: ``parameter``, ``buffer`` or ``optimizer`` (a value moved); ``replaced``, ``added`` or ``removed`` (it is
            another Parameter than it was); ``dropout`` (nothing moved, and the same input has other answers).
        name: as in ``backbone.1.running_mean``; for optimiser state with the state's name.
        amount: the largest absolute change of an element; for ``dropout`` of an answer, or the share of the dropout's
            input that it changes, where the module was not called itself.
        reason: why, as far as it was seen, and what to do.
    """

    kind: str
    name: str
    amount: float
    reason: str

    def __str__(self) -> str:
        return f"{_WORDS[self.kind].format(self.name, self.amount)}: {self.reason}"


class FrozenDrift(AssertionError):
    """Something that is declared frozen moved."""

    def __init__(self, drifts: Sequence[Drift]) -> None:
        self.drifts = tuple(drifts)
        super().__init__("\n".join(map(str, drifts)))


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a parameter that is frozen while the rest trains, such as the first rows of an embedding.

    Args:
        of: a parameter, or a module: then of each of its parameters.
        index: what ``parameter[index]`` takes: a row, a slice, a ``range`` or list of rows, a mask of its shape.
    """

    of: nn.Module | Tensor
    index: Any

    def cut(self, tensor: Tensor) -> Tensor:
        index = list(self.index) if isinstance(self.index, range) else self.index
        return tensor[index.to(tensor.device) if isinstance(index, Tensor) else index]


class FreezeWatch:
    """Remembers everything that is frozen, and tells what moved since::

        with FreezeWatch({"backbone": backbone, "old rows": Part(embed, slice(0, 100))}, [optimizer]) as watch:
            train()
        for drift in watch.drifts():
            print(drift)

    Parameters are followed by identity, and those of modules by name too: one that is exchanged (an assignment, a
    resize, ``load_state_dict(assign=True)``, a wrapper) is told. Buffers are followed by name.

    It keeps a copy of what it watches. Until :meth:`close` it has a hook on all optimisers' steps, also of those that
    were not handed over, and hooks on the frozen modules until they were called with dropout on.

    Args:
        frozen: a module, or ``{name: module, parameter, view of one, Part, or nested lists and dicts of them}``; or a
            function that returns one, which is asked again at each look, so that an exchanged module is told.
        optimizers: those that might move them. Their state is watched too.

    Raises:
        ValueError: nothing to watch, in all or under a name.
        TypeError: a part that holds something else, or a tensor that was computed.
    """

    def __init__(
        self, frozen: Modules | Mapping[str, Any] | Callable[[], Any], optimizers: Iterable[Optimizer] = ()
    ) -> None:
        asked = frozen if callable(frozen) and not isinstance(frozen, nn.Module) else None
        kept = listed(frozen, Part) if asked is None else None
        self._ask: Callable[[], Any] = asked or (lambda: kept)
        roots = self._ask()
        if not isinstance(roots, nn.Module) and not roots:
            raise ValueError("FreezeWatch: nothing to watch; pass a module or {name: module or parameters}")
        watched: dict[Any, Watched] = {}
        self._names: dict[str, Watched] = {}
        self._lazy: set[str] = set()
        for name, owner, tensor, cut in _parameters(roots):
            if is_lazy(tensor) or tensor.is_meta:
                self._lazy.add(name)
                continue
            key = id(tensor) if cut is None else name
            if key not in watched:
                watched[key] = Watched([], tensor, cut or _whole, cut is None, owner)
            watched[key].names.append(name)
            self._names[name] = watched[key]
        self._watched = list(watched.values())
        self._buffers = {name: plain(b).clone() for name, _, b in _buffers(roots) if not (is_lazy(b) or b.is_meta)}
        self._writers = Writers(self._watched, optimizers)
        remember = weakref.WeakMethod(self._remember_state)
        self._writers.on_first_sight = lambda optimizer: (alive := remember()) and alive(optimizer)
        self._state: dict[tuple[int, str], Tensor] = {}
        for optimizer in self._writers.optimizers:
            self._remember_state(optimizer)
        self._calls = Calls(_modules(roots))

    def __enter__(self) -> FreezeWatch:
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            self.close()
        finally:
            self.close()  # what an exception (Ctrl-C) kept from it

    def close(self) -> None:
        """Remove the hooks; :meth:`drifts` still works."""
        try:
            self._writers.close()
        finally:
            self._calls.close()

    def drifts(self) -> list[Drift]:
        """What is not as it was in the beginning: parameters, then buffers, optimiser state, and dropout that is on."""
        roots = self._ask()
        now = {name: tensor for name, _, tensor, _ in _parameters(roots)}
        return [
            *self._exchanged(now),
            *self._moved(now),
            *self._moved_buffers(roots),
            *self._moved_state(),
            *self.dropouts(),
        ]

    def dropouts(self) -> list[Drift]:
        """Those of :meth:`drifts` that tell of dropout."""
        return [Drift("dropout", *noise) for noise in self._calls.noises()]

    def _moved(self, now: Mapping[str, Tensor]) -> Iterator[Drift]:
        present = set(map(id, now.values()))
        for each in self._watched:
            if id(each.parameter) not in present or each.parameter.is_meta:
                continue
            value = each.read()
            if value.shape != each.before.shape:
                why = f"its .data is another tensor now, of shape {_shape(value)}; it was {_shape(each.before)}"
                yield Drift("parameter", each.name, _overlap(value, each.before), why)
            elif amount := moved(value, each.before):
                yield Drift("parameter", each.name, amount, each.why())

    def _exchanged(self, now: Mapping[str, Tensor]) -> Iterator[Drift]:
        """Parameters that stand where others stood."""
        known = {id(each.parameter) for each in self._watched}
        present = set(map(id, now.values()))
        for name, each in self._names.items():
            new = now.get(name)
            if new is None and id(each.parameter) not in present:
                yield Drift("removed", name, 0.0, "it is no parameter of the module any more; watch what replaced it")
            elif new is not None and new is not each.parameter:
                shape = f" of shape {_shape(new)}" if new.shape != each.parameter.shape else ""
                amount = 0.0 if new.is_meta else _overlap(plain(each.cut(new)), each.before)
                yield Drift("replaced", name, amount, f"another Parameter{shape} stands there, {_trains(new)}")
        for name, new in now.items():
            if name not in self._names and name not in self._lazy and id(new) not in known:
                yield Drift("added", name, 0.0, f"it was not there when the watch began, {_trains(new)}")

    def _moved_buffers(self, roots: Any) -> Iterator[Drift]:
        for name, owner, buffer in _buffers(roots):
            before = self._buffers.get(name)
            if before is None or buffer.is_meta:
                continue
            value = plain(buffer)
            if value.shape == before.shape:
                if amount := moved(value, before):
                    yield Drift("buffer", name, amount, _why_buffer(owner))
            elif name.rpartition(".")[2] not in non_persistent(owner):  # those are caches
                why = f"its shape is {_shape(value)} now, and was {_shape(before)}"
                yield Drift("buffer", name, _overlap(value, before), why)

    def _states(self, optimizer: Optimizer) -> Iterator[tuple[Watched, str, Tensor]]:
        """The optimiser's state of what is watched; of a part, what belongs to it."""
        held = {id(each.parameter): each for each in self._watched}
        for parameter, state in optimizer.state.items():
            each = held.get(id(parameter))
            for name, value in state.items() if each is not None else ():
                if isinstance(value, Tensor) and each is not None and (each.whole or value.shape == parameter.shape):
                    yield each, name, plain(value if each.whole else each.cut(value.detach()))

    def _remember_state(self, optimizer: Optimizer) -> None:
        self._state |= {(id(each), name): value.clone() for each, name, value in self._states(optimizer)}

    def _moved_state(self) -> Iterator[Drift]:
        for optimizer in self._writers.optimizers:
            for each, name, value in self._states(optimizer):
                before = self._state.get((id(each), name))
                before = torch.zeros_like(value) if before is None or before.shape != value.shape else before
                if amount := moved(value, before):
                    why = each.cause or each.suspect or f"{type(optimizer).__name__} updates it in its step"
                    yield Drift("optimizer", f"{each.name} ({name})", amount, why)


def frozen_modules(modules: Modules) -> dict[str, nn.Module]:
    """The outermost modules of which no parameter requires grad, by name."""
    return modules_without(modules, lambda parameter: parameter.requires_grad)


def modules_without(modules: Modules, has: Callable[[Tensor], bool]) -> dict[str, nn.Module]:
    """The outermost modules with parameters of which none is such a one, by name."""
    found: dict[str, nn.Module] = {}
    for root in modules_in(modules):
        below = {path: [0, 0] for path, _ in walk(root)}  # parameters, and those that are such ones
        for path, module in reversed(list(walk(root))):
            own = parameters_of(module, recurse=False)
            below[path] = [below[path][0] + len(own), below[path][1] + sum(map(has, own))]
            if path:
                above = below[path.rpartition(".")[0]]
                above[0] += below[path][0]
                above[1] += below[path][1]
        inside: set[str] = set()
        for path, module in walk(root):
            if path and path.rpartition(".")[0] in inside:
                inside.add(path)
            elif below[path][0] and not below[path][1]:
                inside.add(path)
                found[path or type(module).__name__] = module
    return found


# ---- what is watched


def _parameters(roots: Any) -> Iterator[tuple[str, nn.Module | None, Tensor, Callable[[Tensor], Tensor] | None]]:
    """``(name, the module that owns it, the parameter, what takes the watched part out of it or None for all)``."""
    for name, leaf in leaves(roots, Part):
        cut = leaf.cut if isinstance(leaf, Part) else None
        root: nn.Module | Tensor = leaf.of if isinstance(leaf, Part) else leaf
        if isinstance(root, nn.Module):
            found = list(parameters_in(root, name))
            if not found and next(iter(buffers_in(root)), None) is None:
                raise ValueError(f"FreezeWatch: {name or type(root).__name__!r} has no parameters")
            yield from ((inner, owner, tensor, cut) for inner, owner, tensor in found)
        elif root.is_leaf:
            yield name, None, root, cut
        elif cut is None and (base := base_of(root)) is not None and base.is_leaf:
            yield name, None, base, _window(root, base)
        else:
            raise TypeError(
                f"FreezeWatch: {name!r} is a tensor that was computed; pass the parameter, or Part(parameter, index)"
            )


def _buffers(roots: Any) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for name, module in _modules(roots).items():
        yield from buffers_in(module, name)


def _modules(roots: Any) -> dict[str, nn.Module]:
    return {name: leaf for name, leaf in leaves(roots, Part) if isinstance(leaf, nn.Module)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _window(view: Tensor, base: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes the same view out of the base, or out of a tensor of its shape."""
    size, stride, offset = view.size(), view.stride(), view.storage_offset() - base.storage_offset()
    steps = base.stride()

    def cut(tensor: Tensor) -> Tensor:
        if tensor.stride() != steps:
            tensor = torch.empty_strided(tensor.size(), steps, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        return tensor.as_strided(size, stride, tensor.storage_offset() + offset)

    return cut


# ---- words


def _overlap(now: Tensor, before: Tensor) -> float:
    """How far the values are apart where both tensors have some."""
    if now.dim() != before.dim():
        return float("inf")
    common = tuple(slice(0, min(sizes)) for sizes in zip(now.shape, before.shape, strict=True))
    return moved(now[common], before[common])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "1"


def _trains(tensor: Tensor) -> str:
    if tensor.requires_grad:
        return "and it requires grad; freeze it too: requires_grad_(False)"
    return "which the watch has not followed; replace it before the watch begins"


def _why_buffer(owner: nn.Module) -> str:
    if owner.training and getattr(owner, "track_running_stats", False):
        return "BatchNorm updates its statistics in train mode, without gradients too; call .eval() on it"
    return "it was written to" + ("; its module is in train mode" if owner.training else "")
