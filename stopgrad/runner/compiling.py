"""``compile=true``: the networks, one graph each. ``compile=update``: each loss with its gradient, as one graph.

In the second the crossings are in the graph, so that what each boundary cuts is gone from the compiled backward, and
where a loss holds a derivative (a penalty, an inner loop) that is compiled too. The optimisers stay as they are: a
fused step is sooner done than a compiled one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from stopgrad.cuts.torch_internals import allow_recompiles, not_one_graph, trace_backward
from stopgrad.cuts.watcher import watcher
from stopgrad.flow.contract import FlowContract
from stopgrad.runner.errors import InputError, RunFailed, choose

RECOMPILES = 64  # the 8 of PyTorch are for all that is compiled here together, whose wrapper is one function


def check_compile(config: DictConfig, refuses: Mapping[str, str]) -> None:
    """Refuse a choice that is none, or that this run cannot have; ``refuses`` are the recipe's own.

    Raises:
        InputError: with the key and what is allowed.
    """
    if not isinstance(config.compile, bool) and config.compile != "update":
        raise InputError(choose("compile", config.compile, ["false", "true", "update"]))
    if config.compile != "update":
        return
    if words := refuses.get("compile=update"):
        raise InputError(f"compile=update: {words}; choose true or false")
    for name in (name for name, choice in config.stop.items() if choice == "inference_mode"):
        raise InputError(f"compile=update: stop.{name}=inference_mode would be no_grad in a graph; choose no_grad")
    if config.trainer.get("precision") == "16-mixed":
        raise InputError("compile=update: the scale of fp16 would come too late; choose trainer.precision=bf16-mixed")
    if str(OmegaConf.select(config, "trainer.strategy._target_")).endswith("FullyShard"):
        raise InputError("compile=update: not for weights that several GPUs share; choose true or false")


def compile_recipe(recipe: L.LightningModule, choice: bool | str) -> None:
    """Compile what the config's ``compile`` asks for, in place: parameter names stay."""
    if choice == "update":
        compile_losses(recipe)
    elif choice:
        compile_networks(recipe)


def compile_networks(recipe: L.LightningModule) -> None:
    """Let torch.compile have the recipe's networks. The crossings are not compiled.

    Their ``forward`` is compiled: ``nn.Module.compile`` passes over a network that is one of torch's own containers.
    """
    allow_recompiles(RECOMPILES)
    networks: Any = recipe.to_compile() if hasattr(recipe, "to_compile") else recipe.children()  # pyright: ignore[reportCallIssue]
    for network in networks:
        network.forward = torch.compile(network.forward)


def losses_of(recipe: L.LightningModule) -> list[str]:
    """The losses of the recipe's contract that are methods of that name.

    Raises:
        InputError: there is none, or this PyTorch does not trace a backward.
    """
    names = [name for name in FlowContract.of(getattr(recipe, "FLOW", {})) if callable(getattr(recipe, name, None))]
    if not names:
        name = type(recipe).__name__
        raise InputError(f"compile=update: no loss in {name}.FLOW is a method of {name}; choose true or false")
    if not trace_backward():
        raise InputError(f"compile=update: PyTorch {torch.__version__} cannot; install 2.13, or choose true or false")
    return names


def compile_losses(recipe: L.LightningModule) -> None:
    """Compile each loss of :func:`losses_of`, and its gradient with it."""
    allow_recompiles(RECOMPILES)
    for name in losses_of(recipe):
        setattr(recipe, name, CompiledLoss(recipe, name))


def compiled_losses(recipe: L.LightningModule) -> list[str]:
    """Names of the losses that ran compiled."""
    return [name for name, each in vars(recipe).items() if isinstance(each, CompiledLoss) and each.calls]


class CompiledLoss:
    """A loss method, compiled with its gradient; to be called as it is, and to be taken backward once.

    The call computes the gradient too; the backward hands it on, through autograd, so that hooks, ranks and the
    accumulation of gradients are as ever. Outside of training, without gradients, and while an audit watches, the
    method runs as it is. It draws the random numbers that it would draw eagerly.

    Attributes:
        calls: how many were compiled.
    """

    def __init__(self, recipe: L.LightningModule, name: str) -> None:
        self.name, self.calls = name, 0
        self._recipe, self._method, self._parameters = recipe, getattr(recipe, name), tuple(recipe.parameters())

    @cached_property
    def _graph(self) -> Callable[..., tuple[Tensor, Sequence[Tensor | None]]]:
        """Made where the weights are by then: on a CPU, a graph called from C++ is sooner done with."""
        options: Any = {"fallback_random": True, "cpp_wrapper": self._parameters[0].device.type == "cpu"}
        return torch.compile(self._with_gradient, fullgraph=True, dynamic=False, options=options)

    def _with_gradient(self, live: Sequence[Tensor], args: Any, kwargs: Any) -> tuple[Tensor, Sequence[Tensor | None]]:
        loss = self._method(*args, **kwargs)
        return loss.detach(), torch.autograd.grad(loss, live, allow_unused=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Raises:
        RunFailed: it is no one graph.
        """
        if not self._recipe.training or not torch.is_grad_enabled() or watcher() is not None:
            return self._method(*args, **kwargs)
        live = [*(p for p in self._parameters if p.requires_grad), *live_in((args, kwargs))]
        try:
            loss, gradients = self._graph(live, args, kwargs)
        except not_one_graph() as error:
            self._method(*args, **kwargs)  # what it raises by itself says more
            reason = next(line for line in str(error).splitlines() if not line.endswith("raised:"))
            raise RunFailed(f"compile=update: {self.name} is no one graph: {reason}; choose true or false") from error
        self.calls += 1
        reached = [(leaf, grad) for leaf, grad in zip(live, gradients, strict=True) if grad is not None]
        return _Handed.apply(loss, [grad for _, grad in reached], *(leaf for leaf, _ in reached))  # pyright: ignore[reportReturnType]


class _Handed(torch.autograd.Function):
    """A loss whose gradients at some leaves are there already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: it would silently be a constant
            raise RunFailed("compile=update: a derivative is taken of a compiled loss's gradient; choose compile=false")
        gradients = ctx.saved_tensors
        if weight.device.type != "cpu" or weight.item() != 1:  # on a GPU, to look would be to wait
            gradients = [gradient * weight for gradient in gradients]
        return None, None, *gradients


def live_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts that require grad."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from live_in(each)
