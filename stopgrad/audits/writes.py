"""Who wrote to a watched tensor: a step of an optimiser, or something else. Only what was seen is said."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stopgrad.cuts.torch_internals import version_of
from stopgrad.flow.ops import storage_of

EPS = torch.finfo(torch.float32).eps
CHUNK = 1 << 24  # elements that are compared at a time


def moved(now: Tensor, before: Tensor) -> float:
    """The largest absolute change of an element, 0.0 where none changed by more than rounding does.

    Rounding is 4 units in the last place (of float32, or of a finer type), of the element or of the tensor's root mean
    square, whichever is larger; in a coarser type, and for integers, every change counts. NaN that stays NaN is none.
    """
    now, before = plain(now), plain(before).to(plain(now).device)
    if now.dtype == before.dtype and torch.equal(now, before):
        return 0.0
    eps = min(EPS, torch.finfo(now.dtype).eps) if now.is_floating_point() or now.is_complex() else 0.0
    largest = 0.0
    for new, old in zip(now.reshape(-1).split(CHUNK), before.reshape(-1).split(CHUNK), strict=True):
        wide = torch.complex128 if now.is_complex() or before.is_complex() else torch.float64
        new, old = new.to(wide), old.to(wide)
        same = (new == old) | (new.isnan() & old.isnan())
        change = (new - old).abs().masked_fill(same, 0.0)
        size = old.abs().nan_to_num(nan=0.0, posinf=0.0)
        beyond = change[~(change <= 4 * eps * size.clamp(min=size.square().mean().sqrt()))]
        amount = float(beyond.max()) if beyond.numel() else 0.0
        largest = amount if math.isnan(amount) else max(largest, amount)
    return largest


def plain(tensor: Tensor) -> Tensor:
    """The values alone; of a sharded tensor, this rank's."""
    values: Any = tensor.detach()
    return values.to_local() if hasattr(values, "to_local") else values


@dataclass(eq=False)
class Watched:
    """A parameter that must stand still, or a part of one, and what was seen of the writes to it.

    Attributes:
        names: all that it has.
        parameter: whose version and gradient tell.
        cut: takes the watched part out of the parameter, or of its gradient.
        whole: all of the parameter is watched.
        owner: the module that it belongs to, if it is known.
        cause: why a step moved it, where one was looked at and did.
        suspect: why a step wrote to it, at which nobody looked whether the values changed.
        harmless: a step that was looked at wrote to it and left its values as they were, as zeros that are added do.
        outside: something wrote to it between the steps.
        held: names of the optimisers that hold it and stepped.
    """

    names: list[str]
    parameter: Tensor
    cut: Callable[[Tensor], Tensor]
    whole: bool = True
    owner: nn.Module | None = None
    before: Tensor = field(init=False)
    cause: str = ""
    suspect: str = ""
    harmless: bool = False
    outside: bool = False
    held: dict[str, None] = field(default_factory=dict)
    version: int = field(init=False)
    began: int = field(init=False)
    start: Tensor | None = None

    def __post_init__(self) -> None:
        self.before = self.read().clone()
        self.version = self.began = version_of(self.parameter)

    @property
    def name(self) -> str:
        return " = ".join(self.names)

    def read(self) -> Tensor:
        return plain(self.cut(self.parameter.detach()))

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """What has arrived at the watched part; None if nothing has."""
        grad = parameter.grad
        if grad is None or self.whole:
            return grad
        return self.cut(grad.detach().to_dense())

    def why(self) -> str:
        """Why it moved, as far as that is known."""
        if self.cause:
            return self.cause
        silent = version_of(self.parameter) == self.began
        outside = self.outside or version_of(self.parameter) != self.version
        if self.suspect:
            return self.suspect + ("; it was also written to outside the steps" if outside else "")
        how = ", without a change of its version (.data, NumPy or a raw storage)" if silent else ""
        if self.held and not outside:
            return f"written to{how}; the steps of {', '.join(self.held)} that were looked at did not move it"
        norm = getattr(self.owner, "max_norm", None)
        if isinstance(self.owner, nn.Embedding | nn.EmbeddingBag) and norm is not None:
            return f"max_norm={norm:g}: the embedding's forward scales the rows that it looks up; set max_norm=None"
        steps = f"the steps of {', '.join(self.held)}" if self.held else "the step of any torch.optim optimiser"
        return f"written to outside {steps}{how}"


class Writers:
    """Watches the steps of all optimisers, and notes for each watched tensor who wrote to it.

    It hooks the steps of every ``torch.optim.Optimizer`` in the process, so that one that nobody handed over is seen
    too, until :meth:`close`. Versions are compared at every step, values at an optimiser's first four and then at its
    steps 8, 16, 32, and so on. What a closure does is not the optimiser's.
    """

    def __init__(self, watched: Sequence[Watched], optimizers: Iterable[Optimizer]) -> None:
        self.watched = watched
        self.optimizers: list[Optimizer] = list(optimizers)
        self._handed = set(map(id, self.optimizers))
        self._running: list[Optimizer] = []
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._holds: weakref.WeakKeyDictionary[Optimizer, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
        self.on_first_sight: Callable[[Optimizer], None] = lambda optimizer: None
        me = weakref.ref(self)  # a watch that is dropped without close() takes its hooks along

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            return alive._before_step(optimizer, args, kwargs) if (alive := me()) else None

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if alive := me():
                alive._after_step(optimizer)

        self._handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
        self._finalizer = weakref.finalize(self, remove, self._handles)

    def close(self) -> None:
        """Remove the hooks."""
        remove(self._handles)
        self._finalizer.detach()

    def _held(self, optimizer: Optimizer) -> list[tuple[Watched, Tensor, dict[str, Any]]]:
        """What the optimiser holds of what is watched."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known, held = self._holds.get(optimizer, (-1, []))
        if known != size or _looks(self._steps.get(optimizer, 0)):
            by_id: dict[int, list[Watched]] = {}
            by_storage: dict[int, list[Watched]] = {}
            for each in self.watched:
                by_id.setdefault(id(each.parameter), []).append(each)
                if not isinstance(each.parameter, nn.Parameter):  # an alias, such as weight.data[:5]
                    by_storage.setdefault(storage_of(each.parameter), []).append(each)
            held = [
                (each, p, group)
                for group in optimizer.param_groups
                for p in group["params"]
                for each in by_id.get(id(p)) or (by_storage.get(storage_of(p), ()) if by_storage else ())
            ]
            self._holds[optimizer] = (size, held)
        return held

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if not self._held(optimizer):
            return None
        if not any(known is optimizer for known in self.optimizers):
            self.optimizers.append(optimizer)
            self.on_first_sight(optimizer)
        if optimizer in self._running:  # its last step raised
            del self._running[self._running.index(optimizer) :]
        if self._running:  # an optimiser inside of another: what the outer one did until now is its own
            self._leave(self._running[-1])
        self._running.append(optimizer)
        self._enter(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None

        def between(*inner: Any, **named: Any) -> Any:
            self._leave(optimizer)
            try:
                return closure(*inner, **named)
            finally:
                self._enter(optimizer)

        return (
            (args, {**kwargs, "closure": between}) if "closure" in kwargs else ((args[0], between, *args[2:]), kwargs)
        )

    def _after_step(self, optimizer: Optimizer) -> None:
        if self._running and self._running[-1] is optimizer:
            self._leave(optimizer)
            self._running.pop()
            if self._running:
                self._enter(self._running[-1])

    def _enter(self, optimizer: Optimizer) -> None:
        """The optimiser's own code begins to run."""
        look = _looks(self._steps[optimizer])
        for each, _, _ in self._held(optimizer):
            each.outside |= version_of(each.parameter) != each.version
            each.version = version_of(each.parameter)
            each.start = each.read().clone() if look and not each.cause else None

    def _leave(self, optimizer: Optimizer) -> None:
        """It ends, or calls its closure."""
        name = type(optimizer).__name__
        by = "" if id(optimizer) in self._handed else f" by {name}, which was not handed over"
        for each, parameter, group in self._holds.get(optimizer, (0, ()))[1]:
            each.held[name] = None
            wrote, start = version_of(each.parameter) != each.version, each.start
            each.version, each.start = version_of(each.parameter), None
            if start is not None and not _same(each.read(), start):
                each.cause = _why(each, parameter, group, optimizer, by, start)
            elif start is not None:
                each.harmless |= wrote
            elif wrote and each.whole and not (each.cause or each.suspect or each.harmless):
                each.suspect = _why(each, parameter, group, optimizer, by, None)


def remove(handles: list[Any]) -> None:
    """Remove hooks, and forget them."""
    while handles:
        handles[-1].remove()
        handles.pop()


def _looks(step: int) -> bool:
    """Whether values are compared at the step of this number."""
    return step <= 4 or step & (step - 1) == 0


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _why(
    each: Watched, parameter: Tensor, group: dict[str, Any], optimizer: Optimizer, by: str, start: Tensor | None
) -> str:
    """Why a step of ``optimizer`` wrote to it; ``start`` is what it was before, where that was kept."""
    gradient = each.gradient(parameter)
    if gradient is None:
        factor = None if start is None else _factor(each.read(), start)
        how = "writes to it" if factor is None else f"multiplies it by {factor:.6g}"
        decay = f" (weight_decay={group['weight_decay']:g})" if group.get("weight_decay") else ""
        name = type(optimizer).__name__ + (", which was not handed over," if by else "")
        return f"the step of {name} {how}{decay} though its grad is None; take it out of that optimiser"
    if torch.count_nonzero(gradient):
        if not parameter.requires_grad:
            return f"stepped{by}: a stale gradient from before it was frozen is still in .grad; set it to None"
        if each.whole:
            return f"stepped{by}: a gradient arrived; it is not frozen: requires_grad is True"
        return f"stepped{by}: a gradient arrived there; mask it: parameter.register_hook(lambda grad: grad * mask)"
    how = f"{_movers(each, parameter, group, optimizer)} moves it{by}"
    if each.whole:
        return f"its gradient is zeros and not None, so {how}; use zero_grad(set_to_none=True), no 0 * loss"
    return (
        f"its gradient there is zeros, and {how}; give the parameter a group without weight decay and momentum, or "
        "write the part back after each step"
    )


def _movers(each: Watched, parameter: Tensor, group: dict[str, Any], optimizer: Optimizer) -> str:
    """What moves a parameter whose gradient is zeros: what the group says, and the state shows."""
    movers = [f"weight decay {group['weight_decay']:g}"] if group.get("weight_decay") else []
    state = [s for s in optimizer.state.get(parameter, {}).values() if isinstance(s, Tensor)]
    if any(s.shape == parameter.shape and torch.count_nonzero(each.cut(s)) for s in state):
        movers += ["momentum"] if group.get("momentum") else ["running averages"] if "betas" in group else ["its state"]
    return " and ".join(movers) or type(optimizer).__name__


def _factor(now: Tensor, before: Tensor) -> float | None:
    """The one number by which all elements were multiplied, if there is one."""
    wide, old = now.double().reshape(-1), before.double().reshape(-1)
    known = old != 0
    if now.is_complex() or not known.any():
        return None
    ratios = wide[known] / old[known]
    eps = 4 * torch.finfo(now.dtype).eps if now.is_floating_point() else 0.0
    factor = float(ratios.median())
    exact = bool(((ratios - factor).abs() <= eps * abs(factor)).all()) and not wide[~known].any()
    return factor if exact and factor != 1 else None
