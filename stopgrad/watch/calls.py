"""Which modules ran, and in which mode: with gradients or without, in train mode or in eval mode."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stopgrad.flow.frames import graphless_line, user_line
from stopgrad.flow.lookup import parameters_of
from stopgrad.watch.names import user_frames


@dataclass(eq=False)
class Call:
    """How a module was called.

    Attributes:
        live: at least once with gradients enabled.
        tested: the line at which it first ran without gradients in train mode, where that changes its answer: a
            dropout that drops, a norm that takes its statistics from the batch.
        fed: the line at which it was first called with an input that carries a gradient.
    """

    module: weakref.ref[nn.Module]
    live: bool = False
    tested: tuple[str, int] | None = None
    fed: tuple[str, int] | None = None


@dataclass
class Calls:
    """All modules that were called while the books were open, and whose mode was set.

    Attributes:
        frozen: modules on which ``requires_grad_(False)`` was called last, with the ids of their parameters then.
    """

    of: dict[int, Call] = field(default_factory=dict)
    evaluated: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    frozen: weakref.WeakKeyDictionary[nn.Module, set[int]] = field(default_factory=weakref.WeakKeyDictionary)

    def called(self, module: nn.Module, args: Any) -> None:
        call = self.call_of(module)
        if call is None:
            call = self.of[id(module)] = Call(weakref.ref(module))
        if torch.is_grad_enabled():
            call.live = True
            if call.fed is None and any(isinstance(a, Tensor) and a.grad_fn is not None for a in args):
                call.fed = user_line()
        elif module.training and call.tested is None and differs(module):
            line, in_checkpoint = graphless_line()
            if not in_checkpoint:
                call.tested = _called_at() or line

    def call_of(self, module: nn.Module) -> Call | None:
        call = self.of.get(id(module))
        return call if call is not None and call.module() is module else None

    def set_mode(self, module: nn.Module, training: bool) -> None:
        if not training:
            self.evaluated.add(module)

    def froze(self, module: nn.Module, requires_grad: bool) -> None:
        if requires_grad:
            for inner in module.modules():
                self.frozen.pop(inner, None)
        else:
            self.frozen[module] = {id(p) for p in parameters_of(module)}


def _called_at() -> tuple[str, int] | None:
    """The line of the script that called the outermost module, or None where the script itself is in modules."""
    for frame in user_frames():
        if not isinstance(frame.f_locals.get("self"), nn.Module):
            return frame.f_code.co_filename, frame.f_lineno
    return None


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS += (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def differs(module: nn.Module) -> bool:
    """Whether a module answers otherwise in train mode than in eval mode."""
    if isinstance(module, DROPOUTS):
        return module.p > 0
    return isinstance(module, NORMS) and module.track_running_stats
