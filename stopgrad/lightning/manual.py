"""What a recipe asks of Lightning, typed: backward, its optimisers, its trainer's settings, its data.

A step is one batch on every axis, but Lightning counts the steps of its optimisers. So a recipe steps the one that
steps once a batch through Lightning (:func:`counted`), and every other by itself (:func:`raw`). In fp16 both step
through the gradient scaler.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from stopgrad.cuts.torch_internals import foreach_norm
from stopgrad.lightning.lightning_internals import plain_epoch
from stopgrad.watch.names import said


def backward(module: LightningModule, loss: Tensor, name: str, **options: Any) -> None:
    """``module.manual_backward(loss)`` of a loss with a name.

    Where Lightning would add nothing but the hooks (one device, no scaler), they and ``loss.backward()`` are called
    without its layers between: 4 % of a small GAN's step.

    Args:
        loss: a scalar.
        name: as audits and comparisons name it.
        options: of :meth:`torch.Tensor.backward`.
    """
    token = said.set(name)  # as `with loss_name(name)`, in half of its time
    try:
        epoch = plain_epoch(module)
        if epoch is None:
            module.manual_backward(loss, **options)
            return
        epoch.call("on_before_backward", loss)
        loss.backward(**options)
        epoch.call("on_after_backward")
    finally:
        said.reset(token)


def optimizers(module: LightningModule) -> list[Any]:
    """Lightning's, in the order of ``configure_optimizers``."""
    found = module.optimizers()
    return list(found) if isinstance(found, list | tuple) else [found]


def counted(module: LightningModule, index: int = 0) -> Optimizer:
    """The optimiser whose steps are counted: ``global_step`` is the batches if it steps once a batch."""
    return cast(Optimizer, optimizers(module)[index])


def raw(module: LightningModule, index: int = 0) -> Optimizer:
    """The optimiser beneath Lightning's, whose steps nobody counts."""
    optimizer, scaler = optimizers(module)[index].optimizer, scaler_of(trainer_of(module))
    return optimizer if scaler is None else cast(Optimizer, _Scaled(optimizer, scaler))


class _Scaled:
    """An optimiser whose step goes through a scaler, and is left out where a gradient overflowed."""

    def __init__(self, optimizer: Optimizer, scaler: GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self) -> None:
        if any(p.grad is not None for group in self._optimizer.param_groups for p in group["params"]):
            self._scaler.step(self._optimizer)
            self._scaler.update()  # or the scaler would refuse this optimiser's next step within the batch


def scaler_of(trainer: Trainer) -> GradScaler | None:
    """The gradient scaler of a training in fp16 (``precision=16-mixed``), else None."""
    return getattr(getattr(trainer, "precision_plugin", None), "scaler", None)


def scale_of(trainer: Trainer) -> float:
    """What a loss is multiplied by before its backward: the scaler's present scale, or 1. On a GPU, fp16 waits here."""
    scaler = scaler_of(trainer)
    return 1.0 if scaler is None else scaler.get_scale()


def clip_gradients(module: LightningModule, optimizer: Optimizer, max_norm: float, group: int | None = None) -> Tensor:
    """Scale the gradients of an optimiser's parameters, or of one group of them, down to a norm of ``max_norm``.

    In fp16 the bound is scaled, not the gradients unscaled, after which Lightning would refuse to step. The scale is a
    power of two, so that this is the same.

    Returns:
        The norm before, of the unscaled gradients.
    """
    groups = optimizer.param_groups if group is None else [optimizer.param_groups[group]]
    held = [p for each in groups for p in each["params"]]
    gradients = [p.grad for p in held if p.grad is not None]
    if plain_epoch(module) is None or not gradients:
        scale = scale_of(trainer_of(module))
        return clip_grad_norm_(held, max_norm * scale, foreach=True) / scale
    with torch.no_grad():  # as clip_grad_norm_ does, less its search for the devices and types there are
        norm = torch.linalg.vector_norm(torch.stack(list(foreach_norm(gradients))))
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


def trainer_of(module: LightningModule) -> Trainer:
    return cast(Trainer, module.trainer)


def data_of(module: LightningModule) -> Any:
    """The data module of the run, whose own attributes only the recipe knows."""
    return cast(LightningDataModule, cast(Any, module.trainer).datamodule)


def log_is_due(module: LightningModule, steps_ahead: int = 0) -> bool:
    """Whether this batch is one in ``log_every_n_steps``; ``steps_ahead=1`` asks before the counted step was made."""
    every: int = cast(Any, module.trainer).log_every_n_steps
    return (module.global_step + steps_ahead) % every == 0
