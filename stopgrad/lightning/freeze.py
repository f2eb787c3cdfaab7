"""``FreezeAudit``: what moved although it was frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from stopgrad.audits.freeze import Drift, FreezeWatch, FrozenDrift, frozen_modules, train_eval_gap
from stopgrad.cuts.strategies import nearest
from stopgrad.lightning.audit import Audit, groups_of, over_ranks


class FreezeAudit(Audit):
    """Tell whether anything that is declared frozen moved: parameters, buffers, optimiser state.

    The first batch also shows whether the frozen modules' features are the same in train mode and in eval mode.

    Args:
        parts: groups, or dotted names of submodules; by default the contract's ``frozen`` parts, and without any the
            outermost modules of which no parameter requires grad.
        every_n_steps: check after every n-th batch; None for the end of each epoch alone.
        on_violation: ``raise`` :class:`FrozenDrift`, on all ranks, ``warn``, or ``record`` it in ``drifts``.

    Attributes:
        drifts: what has moved by the last check.
        gaps: by part, the largest difference between features in train mode and in eval mode at the first batch.
    """

    def __init__(
        self, parts: Sequence[str] | None = None, every_n_steps: int | None = None, on_violation: str = "raise"
    ) -> None:
        super().__init__(every_n_steps, on_violation)
        self.parts = parts
        self.drifts: list[Drift] = []
        self.gaps: dict[str, float] = {}
        self._watch: FreezeWatch | None = None
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[str, tuple[nn.Module, Any, Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = self._frozen(pl_module)
        if not frozen:
            raise ValueError("FreezeAudit: nothing is frozen; name the parts, FreezeAudit(parts=[...])")
        self._watch = FreezeWatch(frozen, [getattr(o, "optimizer", o) for o in trainer.optimizers])
        for name, part in frozen.items():
            if isinstance(part, nn.Module):
                keep = partial(self._keep_inputs, name)
                self._handles.append(part.register_forward_pre_hook(keep, with_kwargs=True))

    def _frozen(self, module: LightningModule) -> dict[str, Any]:
        contract = getattr(module, "FLOW", None)
        names = self.parts if self.parts is not None else getattr(contract, "frozen", ())
        if not names:
            return dict(frozen_modules(module))
        groups = groups_of(module)
        named = dict(module.named_modules()) | (dict(groups) if isinstance(groups, Mapping) else {})
        for name in names:
            if name not in named:
                raise ValueError(f"FreezeAudit: no part {name!r}{nearest(name, named)}")
        return {name: named[name] for name in names}

    def _keep_inputs(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs.setdefault(name, (module, args, kwargs))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, (module, args, kwargs) in self._inputs.items():
            self.gaps[name] = train_eval_gap(module, *args, **kwargs)
        self._inputs.clear()
        if self.every_n_steps and self.batches % self.every_n_steps == 0:
            self._check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()

    def _check(self) -> None:
        if self._watch is None:
            return
        self.drifts = self._watch.drifts()
        found = over_ranks(self.drifts)
        if found and self.on_violation == "raise":
            raise FrozenDrift(found)
        if found and self.on_violation == "warn":
            warnings.warn("\n".join(map(str, found)), stacklevel=2)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.on_exception(trainer, pl_module, KeyboardInterrupt())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for handle in self._handles:
            handle.remove()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
