"""Did anything that is called frozen move: parameters, buffers, optimiser state; by how much, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stopgrad.cuts.torch_internals import tree_leaves
from stopgrad.flow.measure import as_found
from stopgrad.flow.parts import Modules, modules_in, names_of, parts_of


@dataclass(frozen=True)
class Drift:
    """Something frozen that moved.

    Attributes:
        kind: ``parameter``, ``buffer`` or ``optimizer``.
        name: as in ``backbone.1.running_mean``; for optimiser state with the state's name.
        amount: the largest absolute change of an element.
        reason: why, and what to do.
    """

    kind: str
    name: str
    amount: float
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} moved by {self.amount:.2g}: {self.reason}"


class FrozenDrift(AssertionError):
    """Something that is declared frozen moved."""

    def __init__(self, drifts: Sequence[Drift]) -> None:
        self.drifts = tuple(drifts)
        super().__init__("\n".join(map(str, drifts)))


class FreezeWatch:
    """Remembers everything that is frozen, and tells what moved since::

        with FreezeWatch({"backbone": backbone}, [optimizer]) as watch:
            train()
        for drift in watch.drifts():
            print(drift)

    It keeps a copy of what it watches, and one hook on each optimiser, which is removed at the end.

    Args:
        frozen: modules or parameters, as for :class:`stopgrad.audit`.
        optimizers: those that might move them.
    """

    def __init__(self, frozen: Modules, optimizers: Iterable[Optimizer] = ()) -> None:
        parts = parts_of(frozen)
        self._names = names_of(frozen, parts)
        self._parameters = {id(t): t for tensors in parts.values() for t in tensors}
        self._buffers = _buffers(frozen)
        self._optimizers = list(optimizers)
        self._reasons: dict[int, str] = {}
        self._before = {key: t.detach().clone() for key, t in self._parameters.items()}
        self._buffers_before = {name: b.detach().clone() for name, (_, b) in self._buffers.items()}
        self._state_before = {key: t.detach().clone() for key, t in self._state()}
        self._handles = [o.register_step_pre_hook(self._before_step) for o in self._optimizers]

    def __enter__(self) -> FreezeWatch:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks; :meth:`drifts` still works."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def drifts(self) -> list[Drift]:
        """What moved since the beginning, parameters first."""
        found = [
            Drift("parameter", self._names[key], amount, self._reasons.get(key, "written to outside an optimiser"))
            for key, tensor in self._parameters.items()
            if (amount := _moved(tensor, self._before[key]))
        ]
        for name, (owner, buffer) in self._buffers.items():
            if amount := _moved(buffer, self._buffers_before[name]):
                found.append(Drift("buffer", name, amount, _why_buffer(owner)))
        for (key, state), tensor in self._state():
            before = self._state_before.get((key, state))
            if amount := _moved(tensor, torch.zeros_like(tensor) if before is None else before):
                reason = self._reasons.get(key, "it was stepped before the watch began")
                found.append(Drift("optimizer", f"{self._names[key]} ({state})", amount, reason))
        return found

    def _state(self) -> list[tuple[tuple[int, str], Tensor]]:
        return [
            ((id(parameter), name), value)
            for optimizer in self._optimizers
            for parameter, state in optimizer.state.items()
            if id(parameter) in self._parameters
            for name, value in state.items()
            if isinstance(value, Tensor)
        ]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The gradients of frozen parameters, at the moment when they do harm."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in self._parameters and p.grad is not None:
                    self._reasons.setdefault(id(p), _why_parameter(p, group, optimizer))


def train_eval_gap(module: nn.Module, *args: Any, **kwargs: Any) -> float:
    """The largest difference between a module's features in train mode and in eval mode, for the same input.

    0.0 means that freezing the parameters freezes the features. The module is left as it was.
    """
    with as_found([module]), torch.no_grad():
        outputs = []
        for mode in (True, False):
            module.train(mode)
            outputs.append(module(*args, **kwargs))
        train, evaluated = (_tensors(output) for output in outputs)
        return max((_moved(a, b) for a, b in zip(train, evaluated, strict=True)), default=0.0)


def _tensors(tree: Any) -> Sequence[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _moved(now: Tensor, before: Tensor) -> float:
    """The largest absolute change; 0.0 for equal tensors."""
    if torch.equal(now, before):
        return 0.0
    return float((now.detach().double() - before.double()).abs().max())


def _buffers(frozen: Modules) -> dict[str, tuple[nn.Module, Tensor]]:
    """``name -> (the module that owns it, the buffer)``."""
    roots = {"": frozen} if isinstance(frozen, nn.Module) else {f"{k}.": v for k, v in frozen.items()}
    return {
        f"{prefix}{path}{'.' if path else ''}{name}": (module, buffer)
        for prefix, root in roots.items()
        if isinstance(root, nn.Module)
        for path, module in root.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
    }


def _why_buffer(owner: nn.Module) -> str:
    if owner.training and getattr(owner, "track_running_stats", False):
        return "BatchNorm updates its statistics in train mode, without gradients too; call .eval() on it"
    return "it was written to" + (" in train mode; call .eval() on its module" if owner.training else "")


def _why_parameter(p: Tensor, group: dict[str, Any], optimizer: Optimizer) -> str:
    assert p.grad is not None
    if torch.count_nonzero(p.grad):
        if p.requires_grad:
            return "a gradient arrived; it is not frozen: requires_grad is True"
        return "a stale gradient from before it was frozen is still in .grad; set it to None"
    movers = [f"weight decay {group['weight_decay']:g}"] if group.get("weight_decay") else []
    movers += ["momentum"] if group.get("momentum") else ["running averages"] if "betas" in group else []
    how = " and ".join(movers) or type(optimizer).__name__
    return f"its gradient is zeros and not None, so {how} moves it; use zero_grad(set_to_none=True), no 0 * loss"


def frozen_modules(modules: Modules) -> dict[str, nn.Module]:
    """The outermost modules of which no parameter requires grad, by name."""
    found: dict[str, nn.Module] = {}
    for root in modules_in(modules):
        for name, module in root.named_modules():
            parameters = list(module.parameters())
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if parameters and not inside and not any(p.requires_grad for p in parameters):
                found[name or type(module).__name__] = module
    return found
