"""Data-parallel training in which no module is wrapped: what the engines share, and the one for CPU processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Unwrapped(DDPStrategy):
    """Every rank holds the whole recipe, draws its own part of the global batch, and averages after each backward.

    So it does not matter which parameters a loss reaches, how many losses and optimisers there are, what is cut, or
    what is unfrozen later. Gradients inside a loss (a penalty, an inner loop) stay local, as they must. Floating-point
    buffers (BatchNorm's statistics, an average's copy of them) are averaged after each training step.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hooks: list[RemovableHandle] = []

    @property
    def _module(self) -> L.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def configure_ddp(self) -> None:
        """Instead of wrapping: the same weights everywhere."""
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            dist.broadcast(tensor.data, src=0)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().training_step(*args, **kwargs)
        if not self._module.automatic_optimization:
            self._average_buffers()
        return output

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().optimizer_step(*args, **kwargs)
        if self._module.automatic_optimization:  # the forward saved buffers for the backward, which runs in here
            self._average_buffers()
        return output

    def _average_buffers(self) -> None:
        average((b for b in self._module.buffers() if b.is_floating_point() or b.is_complex()), exact=True)

    def teardown(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().teardown()


class AveragedGradients(Unwrapped):
    """For CPU processes: one flat exchange after each backward, of exactly the gradients that it has touched anywhere.

    On GPUs PyTorch's FSDP2 is better: :class:`~stopgrad.runner.sharding.FullyShard`. The weights of both agree.
    """

    def configure_ddp(self) -> None:
        super().configure_ddp()
        self._parameters = list(self._module.parameters())
        self._touched: set[int] = set()
        for index, parameter in enumerate(self._parameters):
            self._hooks.append(when_accumulated(parameter, partial(self._touch, index)))

    def _touch(self, index: int, parameter: Tensor) -> None:
        self._touched.add(index)

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._touched:
            self.post_backward()  # of a backward outside of manual_backward

    def post_backward(self, closure_loss: Tensor | None = None) -> None:
        touched = on_any_rank([index in self._touched for index in range(len(self._parameters))])
        self._touched.clear()
        average(gradient_or_zero(p) for p, there in zip(self._parameters, touched, strict=True) if there)


def when_accumulated(parameter: nn.Parameter, hook: Any) -> RemovableHandle:
    """``hook(parameter)`` after each gradient that a backward leaves in it, even if it is unfrozen only later."""
    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(hook)
    parameter.requires_grad_(not frozen)
    return handle


def on_any_rank(here: list[bool], group: Any = None) -> list[bool]:
    """What holds on some rank; every rank must ask. ``group`` exchanges CPU tensors."""
    there = torch.tensor(here, dtype=torch.uint8)
    dist.all_reduce(there, dist.ReduceOp.MAX, group=group)
    return [bool(each) for each in there.tolist()]


def gradient_or_zero(parameter: nn.Parameter) -> Tensor:
    """A rank whose loss has not reached the parameter counts as 0."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@torch.no_grad()
def average(tensors: Iterable[Tensor], exact: bool = False) -> None:
    """Replace each tensor by its mean over the ranks, one exchange for each dtype: the same bits on every rank.

    ``exact`` sums in float64, so that what is equal on all ranks stays as it is, bit for bit, for any number of ranks.
    """
    by_type = defaultdict(list)
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        by_type[real.dtype, real.device].append(real)
    for same in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        flat = flat.double() if exact else flat
        dist.all_reduce(flat)
        flat = (flat / dist.get_world_size()).to(same[0].dtype)
        for tensor, mean in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(mean.view_as(tensor))
