"""Gradients averaged over ranks: after each backward, exactly those that it touched, whatever ``stop:`` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


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


class AveragedGradients(DDPStrategy):
    """Data-parallel training in which no module is wrapped.

    Every rank holds the whole recipe and draws its own part of the global batch. A hook on each parameter notes where a
    backward has left a gradient; when it ends, those gradients are averaged in one exchange, before anything clips or
    steps. So it does not matter which parameters a loss reaches, how many losses and optimisers there are, what is cut,
    or what is unfrozen later: there is no search for unused parameters, and nothing for the user to set. Gradients
    inside a loss (a penalty, an inner loop) stay local, as they must. Every rank must reach the same parameters.

    Floating-point buffers (BatchNorm's statistics, an average's copy of them) are averaged after each training step.

    DistributedDataParallel overlaps the exchange with the backward and this does not; see docs/distributed.md.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._touched: set[int] = set()
        self._hooks: list[RemovableHandle] = []

    def configure_ddp(self) -> None:
        """Instead of wrapping: the same weights everywhere, and a hook on every parameter, frozen ones too."""
        module = self._module
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)
        self._parameters = list(module.parameters())
        for index, parameter in enumerate(self._parameters):
            frozen = not parameter.requires_grad
            parameter.requires_grad_(True)  # to set the hook; it may be unfrozen later
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._note(index)))
            parameter.requires_grad_(not frozen)

    @property
    def _module(self) -> L.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _note(self, index: int) -> Any:
        return lambda parameter: self._touched.add(index)

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._average_gradients()  # what a backward outside of manual_backward has left

    def post_backward(self, closure_loss: Tensor) -> None:
        self._average_gradients()

    def _average_gradients(self) -> None:
        gradients = [self._parameters[index].grad for index in sorted(self._touched)]
        self._touched.clear()
        average(gradient for gradient in gradients if gradient is not None)

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
