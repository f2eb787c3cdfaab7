"""Which parameters a training really steps: those that nobody steps, somebody steps twice, or that never move."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from stopgrad.audits.tree import leaves, listed, parameters_in, strays_in
from stopgrad.audits.writes import plain, remove
from stopgrad.flow.parts import Modules
from stopgrad.flow.steps import Finding as Finding
from stopgrad.flow.steps import held_by, listed_twice, shown, unstepped

LOOKS = 2  # an optimiser that stepped less often proves nothing: behind a weight of 0 the first gradient is 0

PATIENCE = 6  # steps of another optimiser: a critic may step five times for each step of its generator

# Why a parameter did not move, and what to do: no gradient came, only zeros came, others came too.
_STILL = (
    ("no gradient arrived", "is it used in the loss, and not detached on the way? if it is not needed, leave it out"),
    ("its gradient was zeros", "look for a dead unit, a saturated clamp, or a factor 0"),
    ("each step was too small to change a bit of it", "raise the learning rate, or keep the weights in float32"),
)


class StepWatch:
    """Watches which parameters a training steps::

        with StepWatch(model, [optimizer]) as watch:
            train()
        for finding in watch.findings():
            print(finding)

    Inside the ``with`` all optimisers of the process are seen, also those that were not handed over; gradients are
    looked at after their steps 1, 2, 4, 8, and so on. Nothing is copied: two sums over a parameter tell that it moved.

    Args:
        modules: a module, or ``{name: module, parameter, or nested lists and dicts of them}``. What is in plain lists
            and dicts of a module is watched too.
        optimizers: those that are known from the beginning.

    Attributes:
        optimizers: those, and the others that were seen to step.
        reached: ids of the parameters at which a gradient arrived that is not zero.
        touched: ids of those at which one arrived.
        steps: how often each optimiser was seen to step, by its id.
    """

    def __init__(self, modules: Modules, optimizers: Iterable[Optimizer] = ()) -> None:
        self._modules = listed(modules)
        self.optimizers = list(optimizers)
        self.reached: set[int] = set()
        self.touched: set[int] = set()
        self.steps: dict[int, int] = {}
        self._strays: set[int] = set()  # ids of those that no module has registered
        self._rated: set[int] = set()  # ids of those whose group had a learning rate
        self._sums = {id(p): (p, _sums(p)) for p in self._names()[1] if p.requires_grad and _has_values(p)}
        self._others: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # those of other models
        self._handles: list[Any] = []

    def __enter__(self) -> StepWatch:
        me = weakref.ref(self)

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if alive := me():
                alive.stepped(optimizer)

        self._handles.append(register_optimizer_step_post_hook(after))
        self._finalizer = weakref.finalize(self, remove, self._handles)
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            self.close()
        finally:
            self.close()  # what an exception (Ctrl-C) kept from it

    def close(self) -> None:
        """Remove the hook; :meth:`findings` still works."""
        remove(self._handles)
        self._finalizer.detach()

    def stepped(self, optimizer: Optimizer) -> None:
        """``optimizer`` has stepped, and the gradients are those with which it did."""
        key = id(optimizer)
        count = self.steps[key] = self.steps.get(key, 0) + 1
        if count & (count - 1):  # none of 1, 2, 4, ...: it is known, and this step is not looked at
            return
        if optimizer in self._others:
            return
        if not any(known is optimizer for known in self.optimizers):
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if held.isdisjoint(self._names()[0]):
                self._others.add(optimizer)
                weakref.finalize(optimizer, self.steps.pop, key, None)  # another may get its id
                return
            self.optimizers.append(optimizer)
        self.look()

    def look(self) -> None:
        """Look at the gradients and the learning rates that there are now."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if group.get("lr", 1):
                self._rated.update(id(p) for p in group["params"])
        for parameter in self._names()[1]:
            grad = parameter.grad if parameter.is_leaf else None
            if grad is not None and id(parameter) not in self.reached:
                self.touched.add(id(parameter))
                if torch.count_nonzero(plain(grad)):
                    self.reached.add(id(parameter))

    def findings(self, *, spare: Iterable[Tensor] = (), over: bool = True) -> list[Finding]:
        """What is wrong, as far as it was seen until now.

        Args:
            spare: parameters of which nothing is said.
            over: the training has ended, so that what has not moved never does.
        """
        held = held_by(self.optimizers)
        if not over and held.keys() >= self.reached and not listed_twice({}, self.optimizers):
            return []  # as of nearly every training: then its parameters need no names
        names, model = self._names()
        spared = {id(p) for p in spare}
        names = {key: name for key, name in names.items() if key not in spared}
        found = listed_twice(names, self.optimizers)
        if self.optimizers:
            missed = {id(p) for p in model if p.requires_grad and id(p) in self.reached and id(p) not in held}
            missed -= missed & self._sums.keys() - self._still(missed & names.keys())  # those are moved by hand
            found += unstepped(names, missed - self._strays, self.optimizers, model)
            for finding in unstepped(names, missed & self._strays, self.optimizers, model):
                fix = "a plain list or dict registers nothing: use nn.ModuleList, nn.ModuleDict or nn.ParameterList"
                found.append(replace(finding, fix=fix))
        if over:
            still = self._still(names.keys())
            found += [*self._forgotten(names, still), *self._never_moved(names, still)]
        return found

    def _still(self, keys: Collection[int]) -> set[int]:
        """Those among some parameters, by ``id``, that have not moved."""
        return {key for key, (p, before) in self._sums.items() if key in keys and torch.equal(_sums(p), before)}

    def _forgotten(self, names: dict[int, str], still: set[int]) -> list[Finding]:
        """Gradients that arrived for an optimiser that never stepped, while others did."""
        most = max(self.steps.values(), default=0)
        idle = [optimizer for optimizer in self.optimizers if id(optimizer) not in self.steps]
        moving = held_by(optimizer for optimizer in self.optimizers if id(optimizer) in self.steps)
        found = []
        for optimizer in idle if most >= PATIENCE else ():
            held = dict.fromkeys(id(p) for group in optimizer.param_groups for p in group["params"])
            waiting = [names[key] for key in held if key in self.reached & still and key not in moving]
            if waiting:
                kind = type(optimizer).__name__
                message = f"a gradient arrives at {shown(waiting)}, and {kind}, which holds it, did not step once"
                when = f" while another optimiser stepped {most} times"
                fix = "call its step(), or cut the gradient where it is not meant"
                found.append(Finding("unstepped_parameter", tuple(waiting), message + when, fix))
        return found

    def _never_moved(self, names: dict[int, str], still: set[int]) -> list[Finding]:
        found = []
        for optimizer in self.optimizers:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            steps = self.steps.get(id(optimizer), 0)
            lazy = dict.fromkeys(id(p) for p in held if id(p) in still & self._rated and p.requires_grad)
            if steps < LOOKS:
                continue
            kind = type(optimizer).__name__
            for stage, (why, fix) in enumerate(_STILL):
                mine = [names[key] for key in lazy if (key in self.touched) + (key in self.reached) == stage]
                if mine:
                    message = f"{shown(mine)} requires grad and never moved in {steps} steps of {kind}: {why}"
                    found.append(Finding("never_moved", tuple(mine), message, fix))
        return found

    def _names(self) -> tuple[dict[int, str], list[Tensor]]:
        """The model's parameters as they are now, and their names by id; tied ones show all of theirs."""
        names: dict[int, list[str]] = {}
        found: dict[int, Tensor] = {}

        def note(name: str, parameter: Tensor) -> None:
            found[id(parameter)] = parameter
            names.setdefault(id(parameter), []).append(name)

        for name, leaf in leaves(self._modules):
            for inner, _, parameter in parameters_in(leaf, name) if isinstance(leaf, nn.Module) else ((name, 0, leaf),):
                note(inner, parameter)
        registered = set(found)
        for name, leaf in leaves(self._modules):
            for inner, parameter in strays_in(leaf, name) if isinstance(leaf, nn.Module) else ():
                note(inner, parameter)
        self._strays = found.keys() - registered
        return {key: " = ".join(dict.fromkeys(each)) for key, each in names.items()}, list(found.values())


def _has_values(tensor: Tensor) -> bool:
    return not nn.parameter.is_lazy(tensor) and not tensor.is_meta


def _sums(tensor: Tensor) -> Tensor:
    """Two sums over all elements: equal before and after means that it has not moved."""
    values = plain(tensor)
    values = torch.view_as_real(values) if values.is_complex() else values
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    return torch.stack([values.sum(dtype=wide), torch.linalg.vector_norm(values, dtype=wide)])
