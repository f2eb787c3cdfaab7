"""Data-parallel training by FSDP2, in which a recipe goes on as if it were alone.

``torch.distributed.fsdp.fully_shard`` reduces, shards and gathers. What a recipe is, it cannot know: which losses there
are, which networks each reaches, what is called by another name than ``forward``, what is read without being called.
So no network of the recipe is wrapped. FSDP2 holds the trained parameters through units of our own, which nobody calls,
and for all but the moment of an optimiser's step the recipe, its optimisers and its audits hold whole, plain tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from stopgrad.audits.ranks import whole_of
from stopgrad.cuts.torch_internals import keep_state_dicts_whole, tree_map
from stopgrad.runner.averaging import Unwrapped, gradient_or_zero, on_any_rank, when_accumulated
from stopgrad.runner.errors import InputError, RunFailed


class Held:
    """One trained parameter: ``whole`` in the recipe, and FSDP2's ``sharded``, of which this rank holds some rows."""

    def __init__(self, name: str, whole: nn.Parameter, sharded: DTensor) -> None:
        self.name, self.whole, self.sharded = name, whole, sharded
        mesh = sharded.device_mesh["shard"]
        self.mine = sharded.to_local()  # these rows: those that torch.chunk gives
        first = min(mesh.get_local_rank() * -(-whole.shape[0] // mesh.size()), whole.shape[0])
        self.rows = slice(first, first + self.mine.shape[0])
        self.average: Any = None  # the gradient over all ranks, as FSDP2 holds it
        self.shown: Tensor | None = None  # the same as the recipe sees it

    @property
    def is_local(self) -> bool:
        """Whether it has a gradient that is not yet averaged."""
        return self.whole.grad is not None and self.whole.grad is not self.shown

    def set_aside(self) -> None:
        """Before a backward: what was averaged must not be mixed with what comes."""
        if self.whole.grad is not self.shown:
            self.average = None  # it was zeroed, or written anew
        elif self.shown is not None:
            self.whole.grad = None
        self.shown = None

    def on_accumulated(self, whole: Tensor) -> None:
        """A backward has left a gradient.

        Raises:
            RuntimeError: one that was not announced, ``loss.backward()``, has added it to an average.
        """
        if whole.grad is self.shown:
            raise RuntimeError(f"{self.name}: loss.backward() adds to an averaged gradient; self.manual_backward(loss)")

    def begin_reduction(self, due: bool) -> None:
        """Let FSDP2 add to what was averaged before; where another rank has a gradient, this one has 0."""
        if self.shown is not None:
            self.set_aside()
        self.sharded.grad = self.average
        if due:
            gradient_or_zero(self.whole)

    def end_reduction(self, sharded: bool) -> None:
        """The average is the gradient; where it is sharded, as a DTensor, whose norm is that of the whole."""
        self.average, self.sharded.grad = self.sharded.grad, None
        self.shown = self.average if sharded or self.average is None else self.average.to_local()
        self.whole.grad = self.shown

    def hand_over(self) -> None:
        """Before a step: FSDP2 gets what the recipe may have written into the weights, and the gradient."""
        self.mine.copy_(self.whole[self.rows])
        gradient = self.whole.grad
        self.sharded.grad = self.average if gradient is self.shown else self.sharded_of(gradient)
        self.sharded.requires_grad_(self.whole.requires_grad)

    def take_back(self, gathered: bool) -> None:
        """After a step: the recipe has the new weights; a graph that was made with the old ones says so."""
        self.sharded.grad = None
        if gathered:
            torch.autograd.graph.increment_version(self.whole)
        else:
            with torch.no_grad():
                self.whole.copy_(self.mine)

    def sharded_of(self, whole: Tensor | None) -> Tensor | None:
        """The same tensor, of which every rank holds its rows."""
        if whole is None or isinstance(whole, DTensor):
            return whole
        mesh, placements = self.sharded.device_mesh, self.sharded.placements
        return distribute_tensor(whole.detach(), mesh, placements, src_data_rank=None)


class Unit(nn.Module):
    """What is wrapped: some parameters of a recipe. Its forward is there to begin a reduction."""

    def __init__(self, recipe: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, one: Tensor) -> Tensor:
        return one * 1


class Shards:
    """The trained parameters of a recipe, those that its optimisers hold, in the hands of FSDP2.

    ``mesh`` has the dimensions ``replicate`` and ``shard``: every rank of the second holds a part of each parameter's
    gradient and optimiser state. After a backward, :meth:`reduce` averages what it has left. Every rank counts, however
    little its own loss has reached: the ranks first agree on the union, a missing gradient is 0, and what no rank has
    reached keeps None.

    Raises:
        InputError: a trained parameter that is not the recipe's, or that has no dimension to be sharded along.
    """

    def __init__(self, recipe: nn.Module, optimizers: Sequence[Optimizer], mesh: DeviceMesh) -> None:
        trained = {id(p): p for each in optimizers for group in each.param_groups for p in group["params"]}
        names = {name: p for name, p in recipe.named_parameters() if id(p) in trained}
        _check(names, trained)
        groups: dict[Any, list[str]] = defaultdict(list)
        for name, parameter in names.items():
            groups[name.partition(".")[0], parameter.dtype].append(name)
        with keep_state_dicts_whole(recipe):
            units: list[Any] = [_unit(recipe, group, mesh) for group in groups.values()]
            sharded: dict[str, Any] = dict(recipe.named_parameters())
            for unit in units:
                unit.unshard()
        whole = dict(recipe.named_parameters())
        self.held = {
            unit: [Held(name, whole[name], sharded[name]) for name in group]
            for unit, group in zip(units, groups.values(), strict=True)
        }
        self.sharded = mesh["shard"].size() > 1
        self.all = [each for part in self.held.values() for each in part]
        _exchange(optimizers, {names[each.name]: each.whole for each in self.all})
        self.stepping: dict[Optimizer, list[Any]] = {}  # the units of an optimiser, while it steps
        self.ranks = dist.new_group(backend="gloo")  # of CPU tensors: to agree, no rank waits for its GPU
        self.handles = [when_accumulated(each.whole, each.on_accumulated) for each in self.all]
        for optimizer in optimizers:
            self.handles.append(optimizer.register_step_pre_hook(self._before_step))
            self.handles.append(optimizer.register_step_post_hook(self._after_step))

    def set_aside(self) -> None:
        """Before a backward; on this rank alone."""
        for each in self.all:
            each.set_aside()

    @torch.no_grad()
    def reduce(self) -> None:
        """Average over the ranks what a backward has left; every rank must call it."""
        reached = dict(zip(self.all, on_any_rank([each.is_local for each in self.all], self.ranks), strict=True))
        for unit, part in self.held.items():
            for each in part:
                each.begin_reduction(reached[each])
            if any(reached[each] for each in part):
                with torch.enable_grad():
                    unit(torch.zeros((), device=part[0].whole.device, requires_grad=True)).backward()
            for each in part:
                each.end_reduction(self.sharded)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Hand over; where a closure is to compute the gradients, when it has."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._hand_over(optimizer)
            return args, kwargs

        def and_hand_over() -> Any:
            if optimizer in self.stepping:
                raise RuntimeError(
                    f"{type(optimizer).__name__} calls its closure again, which no engine of ranks allows"
                )
            found = closure()
            self._hand_over(optimizer)
            return found

        return (optimizer,), {**kwargs, "closure": and_hand_over}

    @torch.no_grad()
    def _hand_over(self, optimizer: Optimizer) -> None:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if unknown := mine - {id(each.whole) for each in self.all}:
            raise RunFailed(f"an optimiser was given {len(unknown)} parameters after the start, which no rank shares")
        if any(each.is_local for each in self.all if id(each.whole) in mine):
            self.reduce()  # what a backward outside of manual_backward has left
        self.stepping[optimizer] = [u for u, part in self.held.items() if any(id(each.whole) in mine for each in part)]
        for unit in self.stepping[optimizer]:
            for each in self.held[unit]:
                each.hand_over()
        _exchange([optimizer], {each.whole: each.sharded for each in self.all})

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The recipe gets the new weights, whole."""
        _exchange([optimizer], {each.sharded: each.whole for each in self.all})
        for unit in self.stepping.pop(optimizer):
            if self.sharded:
                self._gather(unit)
            for each in self.held[unit]:
                each.take_back(self.sharded)

    def _gather(self, unit: Any) -> None:
        """FSDP2 frees what was whole, and gathers it anew.

        Raises:
            RunFailed: somebody has shared the memory of a parameter with NumPy, which keeps it.
        """
        for each in self.held[unit]:
            if not each.whole.untyped_storage().resizable():
                raise RunFailed(
                    f"{each.name}: .numpy() has shared its memory, which FSDP2 must free; write .clone().numpy()"
                )
        unit.reshard()
        unit.unshard()

    def shard_state(self, optimizer: Optimizer) -> None:
        """The optimiser's state, which a checkpoint holds whole, as the ranks hold it."""
        by_whole: dict[Any, Held] = {each.whole: each for each in self.all}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = by_whole[parameter].sharded_of(value)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def _check(names: Mapping[str, nn.Parameter], trained: Mapping[int, nn.Parameter]) -> None:
    if len({id(p) for p in names.values()}) < len(trained):
        shapes = [list(p.shape) for i, p in trained.items() if i not in {id(q) for q in names.values()}]
        raise InputError(
            f"trainer.strategy: an optimiser holds parameters that are not the recipe's, of shapes {shapes}"
        )
    for name, parameter in names.items():
        if parameter.ndim == 0:
            raise InputError(f"trainer.strategy: {name} has no dimension to be sharded along; make its shape (1,)")


def _unit(recipe: nn.Module, names: Iterable[str], mesh: DeviceMesh) -> FSDPModule:
    """A unit of these parameters alone, which stay whole until they are resharded by hand."""
    inside = set(names)
    others = {p for name, p in recipe.named_parameters() if name not in inside}
    unit: Any = fully_shard(Unit(recipe), mesh=mesh, reshard_after_forward=False, ignored_params=others)
    unit.set_reshard_after_backward(False, recurse=False)
    return unit


def _exchange(optimizers: Iterable[Optimizer], other: Mapping[Any, Any]) -> None:
    """Let the optimisers hold the ``other`` parameters, and their state with them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [other.get(p, p) for p in group["params"]]
        optimizer.state = defaultdict(dict, {other.get(p, p): state for p, state in optimizer.state.items()})


class FullyShard(Unwrapped):
    """Gradients averaged by FSDP2 after each backward; gradients and optimiser state sharded over ``shard`` ranks.

    With 1 every rank holds all: pure data parallelism. None: over all ranks. In between, the ranks are replicas of
    groups of so many. Parameters are whole while a batch is computed, as gradient penalties, inner loops and calls past
    ``forward`` need them. Checkpoints hold whole tensors, as those of one process do, and go on on any number of ranks.

    Args:
        shard: how many ranks share each parameter's gradient and optimiser state; it divides the number of ranks.
        options: those of Lightning's ``DDPStrategy``.
    """

    def __init__(self, shard: PositiveInt | None = 1, **options: Any) -> None:
        super().__init__(**options)
        self.shard = shard
        self._shards: Shards | None = None

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        super().setup_optimizers(trainer)
        ranks, shard = self.world_size, self.shard or self.world_size
        names = ("replicate", "shard")
        mesh = init_device_mesh(self.root_device.type, (ranks // shard, shard), mesh_dim_names=names)
        self._shards = Shards(self._module, self.optimizers, mesh)

    def pre_backward(self, closure_loss: Tensor) -> None:
        if self._shards is not None:
            self._shards.set_aside()

    def post_backward(self, closure_loss: Tensor) -> None:
        if self._shards is not None:
            self._shards.reduce()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole, as one process has it; every rank must ask for it."""
        state = super().optimizer_state(optimizer)
        return tree_map(lambda value: whole_of(value) if isinstance(value, Tensor) else value, state)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        if self._shards is not None:
            for optimizer in self.optimizers:
                self._shards.shard_state(optimizer)

    def teardown(self) -> None:
        if self._shards is not None:
            self._shards.close()
            self._shards = None
        super().teardown()
