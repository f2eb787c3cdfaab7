"""``FreezeAudit``: what moved although it was frozen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from stopgrad.audits.calls import Calls
from stopgrad.audits.freeze import (
    Drift,
    FreezeWatch,
    FrozenDrift,
    Part,
    frozen_modules,
    modules_without,
    train_eval_gap,
)
from stopgrad.audits.tree import parameters_in, walk
from stopgrad.audits.writes import remove
from stopgrad.cuts.strategies import nearest
from stopgrad.flow.parts import find_parts
from stopgrad.lightning.audit import Audit, groups_of, over_ranks, split_groups


class FreezeAudit(Audit):
    """Tell whether anything that is declared frozen moved: parameters, buffers, optimiser state.

    The first batch also shows whether the frozen modules' features are the same in train mode and in eval mode. A
    frozen module that is called with its dropout on, or a teacher (of whose parameters no optimiser steps any), is
    told in a warning, with the size of the effect. Where nothing is frozen it warns of that, and does no more.

    Args:
        parts: groups, or dotted names of submodules or parameters, also with wildcards; by default the contract's
            ``frozen`` parts, and without any the outermost modules of which no parameter requires grad. A mapping names
            what is frozen of each: ``{"embed.weight": slice(0, 100), "head": mask, "backbone": ...}``, see
            :class:`~stopgrad.freeze.Part`; ``...`` is all of it.
        every_n_steps: check after every n-th batch; None for the end of each epoch alone.
        on_violation: ``raise`` :class:`FrozenDrift`, on all ranks, ``warn``, or ``record`` it in ``drifts``.

    Attributes:
        drifts: what has moved by the last check.
        gaps: by part, the largest difference between features in train mode and in eval mode at the first batch.

    Raises:
        ValueError: a name that does not exist.
    """

    def __init__(
        self,
        parts: Sequence[str] | Mapping[str, Any] | None = None,
        every_n_steps: int | None = None,
        on_violation: str = "raise",
    ) -> None:
        super().__init__(every_n_steps, on_violation)
        self.parts = [parts] if isinstance(parts, str) else parts
        self.drifts: list[Drift] = []
        self.gaps: dict[str, float] = {}
        self._watch: FreezeWatch | None = None
        self._teachers: Calls | None = None
        self._told: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[str, tuple[nn.Module, Any, Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizers = [getattr(o, "optimizer", o) for o in trainer.optimizers]
        stepped = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        frozen = self._frozen(pl_module)
        inside = {id(m) for part in frozen.values() if isinstance(part, nn.Module) for _, m in walk(part)}
        teachers = modules_without(pl_module, lambda p: p.requires_grad and id(p) in stepped) if stepped else {}
        self._teachers = Calls({name: m for name, m in teachers.items() if id(m) not in inside})
        self._told.clear()
        if not frozen:
            warnings.warn("FreezeAudit: nothing is frozen, so it does nothing; FreezeAudit(parts=[...])", stacklevel=2)
            return
        self._watch = FreezeWatch(partial(self._again, pl_module, frozen), optimizers)
        for name, part in frozen.items():
            if isinstance(part, nn.Module):
                keep = partial(self._keep_inputs, name)
                self._handles.append(part.register_forward_pre_hook(keep, with_kwargs=True))

    def _frozen(self, module: LightningModule) -> dict[str, Any]:
        """The frozen parts, by name."""
        contract = getattr(module, "FLOW", None)
        parts = self.parts if self.parts is not None else getattr(contract, "frozen", ())
        if not parts:
            return dict(frozen_modules(module))
        cuts = parts if isinstance(parts, Mapping) else dict.fromkeys(parts, ...)
        named = _named(module)
        found: dict[str, Any] = {}
        for pattern, cut in cuts.items():
            names = [pattern] if pattern in named else _outermost(n for n in named if fnmatchcase(n, pattern))
            if not names:
                raise ValueError(f"FreezeAudit: no part {pattern!r}{nearest(pattern, named)}")
            found |= {name: named[name] if cut is ... else Part(named[name], cut) for name in names}
        return found

    @staticmethod
    def _again(module: LightningModule, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """What stands now where the parts stood in the beginning."""
        named = _named(module)
        return {
            name: Part(named[name], part.index) if isinstance(part, Part) else named[name]
            for name, part in frozen.items()
            if name in named
        }

    def _keep_inputs(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs.setdefault(name, (module, args, kwargs))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        remove(self._handles)
        for name, (module, args, kwargs) in self._inputs.items():
            self.gaps[name] = train_eval_gap(module, *args, **kwargs)
        if self._inputs:
            self._inputs.clear()
            self._tell_dropout(self._watch.dropouts() if self._watch else [])
        if self.every_n_steps and self.batches % self.every_n_steps == 0:
            self._check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def _check(self) -> None:
        self.drifts = self._watch.drifts() if self._watch is not None else []
        self._tell_dropout(d for d in self.drifts if d.kind == "dropout")
        found = over_ranks([drift for drift in self.drifts if drift.kind != "dropout"])
        if found and self.on_violation == "raise":
            raise FrozenDrift(found)
        if found and self.on_violation == "warn":
            warnings.warn("\n".join(map(str, found)), stacklevel=2)

    def _tell_dropout(self, found: Iterable[Drift]) -> None:
        """Warn of each module once. Nothing has moved, and some mean it, so that it never raises."""
        for drift in [
            *found,
            *(Drift("dropout", *noise) for noise in (self._teachers.noises() if self._teachers else ())),
        ]:
            if drift.name not in self._told:
                self._told.add(drift.name)
                warnings.warn(str(drift), stacklevel=3)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        try:
            self._remove()
        finally:
            self._remove()  # what an exception (Ctrl-C) kept from it
        self._watch = self._teachers = None

    def _remove(self) -> None:
        remove(self._handles)
        for watch in (self._watch, self._teachers):
            if watch is not None:
                watch.close()


def _outermost(names: Iterable[str]) -> list[str]:
    """The names, without those that lie below another one."""
    found = list(names)
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _named(module: LightningModule) -> dict[str, Any]:
    """What can be frozen: the groups, the submodules and the parameters, by name; the module itself by its type's.

    So can what an audit calls its parts, such as the ``base`` below PEFT's adapters.
    """
    groups, parts = groups_of(module), find_parts(*split_groups(module))
    return {
        **{name: parts.of(name) for name in (*parts.tensors, *parts.unions)},
        type(module).__name__: module,
        **{name: parameter for name, _, parameter in parameters_in(module)},
        **{name: inner for name, inner in walk(module) if name},
        **(groups if isinstance(groups, Mapping) else {}),
    }
