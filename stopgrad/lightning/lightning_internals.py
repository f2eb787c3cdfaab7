"""All that we use of Lightning beyond what it makes public: nothing private of it stands in any other file.

Tried with Lightning 2.6. Where a new version breaks one of these, conf_tests/test_private.py says which, and what no
longer works.
"""

from __future__ import annotations

import traceback
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward")
STEP_HOOKS += ("on_before_zero_grad", "on_before_optimizer_step")


def batch_number(trainer: Trainer) -> int:
    """How many batches were trained before this one, over all epochs: ``total_batch_idx`` of the loop inside."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def ask_no_rank_for_sigterm(trainer: Trainer) -> None:
    """Let no batch begin with a question to all ranks: ``_broadcast_sigterm_tensor`` of the loop, from 2.6 on."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def rest_idle_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Let each batch pass over the hooks that nobody has written, with what surrounds their call.

    One that is None is not called: ``call.py``. A callback that joins later keeps all of its hooks.
    """
    for name in STEP_HOOKS:
        for owner, base in (*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)):  # pyright: ignore
            if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
                setattr(owner, name, None)


def plain_trainer(module: LightningModule) -> Trainer | None:
    """The trainer, where beside the hooks a backward and a step are PyTorch's own: one device, and no scaler.

    What Lightning does there is in ``backward`` and ``optimizer_step`` of ``Strategy`` and ``Precision``.
    """
    trainer = module._trainer
    strategy = getattr(trainer, "strategy", None)
    if type(strategy) is not SingleDeviceStrategy or type(module).backward is not LightningModule.backward:
        return None
    precision = strategy.precision_plugin
    plain = type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None)
    return trainer if plain and "manual_backward" not in vars(module) else None


def run_hooks(trainer: Trainer, module: LightningModule, name: str, *args: Any) -> None:
    """Call one of ``STEP_HOOKS`` of all callbacks and of the module, as ``call.py`` does."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if (hook := getattr(callback, name)) is not None:
            hook(trainer, module, *args)
    if (hook := getattr(module, name)) is not None:
        hook(*args)


def loader_states(checkpoint: dict[str, Any]) -> list[Any]:
    """The states of the training's loaders in a checkpoint: ``loops``, as the fit loop lays it out."""
    return checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])


def set_loader_states(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Let the training's loaders go on from these: ``loops``, as the fit loop reads it."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def raised_in_restore(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint: its functions that do so have ``restore`` in their names."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "restore" in frame.f_code.co_name]
    return any(frame.f_globals["__name__"].startswith("lightning.") for frame in frames)


def has_begun(logger: WandbLogger) -> bool:
    """Whether a run at Weights & Biases was begun; to ask for ``experiment`` would begin one: ``_experiment``."""
    return logger._experiment is not None
