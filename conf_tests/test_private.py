"""What we use of others beyond what they make public: each as we need it to be, and in one file for each library.

Where one fails after an upgrade, the message says what is no longer as it was, and what of ours rests on it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stopgrad.flow.graph import Walk

ROOT = Path(__file__).parents[1]
HOMES = {  # where each library's private interfaces stand
    "torch": "stopgrad.cuts.torch_internals",
    "lightning": "stopgrad.lightning.lightning_internals",
    "hydra": "stopgrad.runner.hydra_internals",
    "omegaconf": "stopgrad.runner.hydra_internals",
}
DISTRIBUTIONS = {"hydra": "hydra-core"}


def rests_on(interface: str, broken: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of a private ``interface``; it is handed our file of that library. ``broken``: what ends with it.

    ``interface`` is a path such as ``torch.utils._pytree:tree_map``, or words where none leads to it.
    """
    library = re.split(r"[.:]", interface)[0]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            pytest.importorskip(library)
            release = f"{library} {version(DISTRIBUTIONS.get(library, library))}"
            try:
                if ":" in interface:
                    pkgutil.resolve_name(interface)
            except (ImportError, AttributeError):
                pytest.fail(f"{interface} is gone in {release}: {broken}", pytrace=False)
            internals = importlib.import_module(HOMES[library])
            try:
                test(internals, *args, **kwargs)
            except Exception as error:
                raise AssertionError(f"{interface} is not what it was, in {release}: {broken}") from error

        signature = inspect.signature(test)
        fixtures = list(signature.parameters.values())[1:]
        wrapper.__signature__ = signature.replace(parameters=fixtures)  # pyright: ignore[reportAttributeAccessIssue]
        return wrapper

    return decorate


# ---- torch


class Pair(NamedTuple):
    first: Any
    second: Any


@rests_on("torch.utils._pytree:tree_map", "Boundary.cross() cannot cut inside dicts, lists and named tuples")
def test_trees(internals: Any) -> None:
    tree = {"b": [1, (2, None)], "a": Pair(3, {"c": 4})}
    assert internals.tree_leaves(tree) == [1, 2, None, 3, 4]
    doubled = internals.tree_map(lambda leaf: leaf and 2 * leaf, tree)
    assert doubled == {"b": [2, (4, None)], "a": Pair(6, {"c": 8})}
    assert type(doubled["a"]) is Pair


@rests_on(
    "torch._C._functorch:peek_interpreter_stack",
    "stopgrad.flow.sites cannot tell that values run inside torch.func, and calls cut what it cannot follow",
)
def test_functorch_level(internals: Any) -> None:
    seen = []

    def square(x: torch.Tensor) -> torch.Tensor:
        seen.append(internals.functorch_level())
        return x * x

    for transformed in (torch.func.grad(square), torch.func.vmap(square)):
        assert internals.functorch_level() is None
        transformed(torch.ones(()) if len(seen) == 0 else torch.ones(2))
    assert len(seen) == 2
    assert None not in seen
    assert internals.functorch_level() is None


@rests_on("torch._C:_current_graph_task_id", "a checkpoint that runs again on a GPU passes for a thread of the user's")
def test_backward_task(internals: Any) -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: seen.append(internals.backward_task()))
    (2 * x).sum().backward()
    (3 * x).sum().backward()
    assert 0 <= seen[0] < seen[1]
    assert internals.backward_task() == -1


@rests_on("torch:Tensor._version", "guard_saved() and the meter of a run cannot see writes into saved tensors")
def test_version(internals: Any) -> None:
    x = torch.ones(2)
    y = x.detach()
    assert internals.version_of(x) == 0
    y[0] = 2.0
    assert internals.version_of(x) == internals.version_of(y) == 1
    x.data[0] = 3.0
    assert internals.version_of(x) == 1


@rests_on("torch:Tensor._is_view", "a frozen parameter that crosses as a view passes for a leak")
def test_view(internals: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    assert internals.is_view(weight.view(4))
    assert not internals.is_view(weight)
    assert not internals.is_view(weight.view(4).detach() + 0)


@rests_on("torch:UntypedStorage._cdata", "a write through an alias is not known as one into the same memory")
def test_storage_id(internals: Any) -> None:
    def storage(tensor: torch.Tensor) -> int:
        return internals.storage_id(tensor.untyped_storage())

    x = torch.ones(2)
    assert storage(x) == storage(x.view(1, 2)) == storage(x.detach()) != storage(x.clone())
    for without_data in ({"size": (0,)}, {"size": (2,), "device": "meta"}):
        one, other = torch.empty(**without_data), torch.empty(**without_data)
        assert storage(one) == storage(one.detach()) != storage(other)


@rests_on("torch.autograd.graph:Node._sequence_nr", "an audit cannot tell what was computed before it began")
def test_sequence_number(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    numbers = [internals.sequence_number(y.grad_fn) for y in (x * 2, x.sin(), Twice.apply(x))]
    assert numbers == sorted(set(numbers))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return 2 * grads[0]


@rests_on(
    "torch:Tensor._post_accumulate_grad_hooks",
    "an audit of a reentrant checkpoint sets off hooks after accumulation, such as an optimiser's step in backward",
)
def test_post_accumulate_hooks(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    assert not internals.post_accumulate_hooks(x)
    handle = x.register_post_accumulate_grad_hook(lambda tensor: None)
    assert internals.post_accumulate_hooks(x)
    handle.remove()
    assert not internals.post_accumulate_hooks(x)


@rests_on("torch:Tensor._base", "FreezeWatch cannot watch rows that are given as a view of a parameter")
def test_base(internals: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    assert internals.base_of(weight[:1]) is weight
    assert internals.base_of(weight) is internals.base_of(weight + 0) is None


@rests_on("torch:Tensor._backward_hooks", "kept_graphs() does not see what a hook on a parameter keeps")
def test_gradient_hooks(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    assert not internals.gradient_hooks(x)
    handle = x.register_hook(print)
    assert list(internals.gradient_hooks(x).values()) == [print]
    handle.remove()
    assert not internals.gradient_hooks(x)


@rests_on("torch.nn.Module, its children and buffers", "FreezeWatch loses names, or calls a cache a drift")
def test_module(internals: Any) -> None:
    module, child = nn.Module(), nn.ReLU()
    module.first, module.second = child, child
    module.register_module("none", None)
    assert list(internals.children_of(module)) == [("first", child), ("second", child)]
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("cache", torch.ones(1), persistent=False)
    assert internals.non_persistent(module) == {"cache"}


@rests_on("torch.distributed.distributed_c10d:_get_default_store", "run does not see that ranks drift apart")
def test_default_store(internals: Any, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        store = internals.default_store()
        assert not store.check(["key"])
        store.set("key", "value")
        assert store.check(["key"])
        assert store.get("key") == b"value"
    finally:
        torch.distributed.destroy_process_group()


@rests_on("torch.overrides:_get_current_function_mode", "an audit cannot be left a second time")
def test_top_mode(internals: Any) -> None:
    assert internals.top_mode() is None
    with torch.overrides.BaseTorchFunctionMode() as mode:
        assert internals.top_mode() is mode
    assert internals.top_mode() is None


class _Names(torch.overrides.TorchFunctionMode):
    """Lists what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@rests_on("torch.optim.Optimizer, its hooks", "an audit does not see what other hooks of a step do, or slows each step")
def test_around_step(internals: Any) -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)])
    order: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    def closure() -> float:
        order.append("step")
        return 0.0

    for name in ("before", "too"):
        optimizer.register_step_pre_hook(note(name))
        optimizer.register_step_post_hook(note(name))
    handles, innermost = internals.around_step(optimizer, note("last"), note("first"))
    of_all = register_optimizer_step_pre_hook(note("all"))
    handles_of_all = [of_all, register_optimizer_step_post_hook(note("all"))]
    optimizer.step(closure)
    assert order == ["all", "before", "too", "last", "step", "first", "before", "too", "all"]
    assert innermost()
    optimizer.register_step_pre_hook(note("late"))
    assert not innermost()
    for handle in [*handles, *handles_of_all]:
        handle.remove()
    order.clear()
    optimizer.step(closure)
    assert order == ["before", "too", "late", "step", "before", "too"]


@rests_on("torch.autograd:backward.__code__", "an audit waits for a loss's own backward that it cannot see")
def test_sees_backward(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    with _Names() as mode:
        loss = x.sum()
        torch.autograd.backward(loss)
    assert (torch.autograd.backward in mode.seen) == internals.sees_backward


@rests_on(
    "torch.ops.profiler, what a step calls", "an audit measures a loss in a pass of its own before each zero_grad"
)
def test_record_function(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x])
    with _Names() as mode:
        optimizer.zero_grad()
    known = {*internals.record_function, torch.Tensor.grad.__get__}  # pyright: ignore[reportAttributeAccessIssue]
    assert len(mode.seen) == 3
    assert known.issuperset(mode.seen)


@rests_on("torch.autograd.graph.Node, what it has saved", "RetentionAudit counts no bytes and knows no spent graph")
def test_saved_tensors(internals: Any) -> None:
    x, y = (torch.full((2,), value, requires_grad=True) for value in (2.0, 3.0))

    def saved(tensor: torch.Tensor) -> list[Any]:
        return [each and [t.tolist() for t in each] for each in internals.saved_tensors(tensor.grad_fn)]

    product = x * y
    assert sorted(saved(product)) == [[[2.0, 2.0]], [[3.0, 3.0]]]
    assert saved(x + y) == []
    product.sum().backward()
    assert saved(product) == [None, None]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t + 1, lambda t: 1 / 0):  # nothing is unpacked
        assert sorted(saved(x * y)) == [[[3.0, 3.0]], [[4.0, 4.0]]]
    assert saved(Twice.apply(x)) == [[]]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@rests_on("torch.nn.parallel.distributed:_DDPSink", "a probe brings the ranks of a DDP with static_graph out of step")
def test_static_graph(internals: Any) -> None:
    for static in (True, False):
        options = {"static_graph": static, "find_unused_parameters": not static}  # each has the node
        module = nn.parallel.DistributedDataParallel(nn.Linear(2, 1), **options)
        assert Walk(module(torch.ones(1, 2))).static_ddp is static


@rests_on("torch.utils.checkpoint:CheckpointFunction", "the gradients inside a reentrant checkpoint are not measured")
def test_reentrant_checkpoint(internals: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    node = torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=True).grad_fn
    assert node.name() == internals.REENTRANT
    with pytest.raises(RuntimeError, match="checkpoint"):  # why it must be known
        torch.autograd.grad(torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=True).sum(), x)


@rests_on("torch.utils.checkpoint:_CheckpointFrame", "freeze ends where a checkpoint runs its producer again")
def test_checkpointed_functions(internals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import checkpoint

    frame = pkgutil.resolve_name("torch.utils.checkpoint:_CheckpointFrame")
    for owner, name in ((checkpoint.CheckpointFunction, "forward"), (frame, "__init__")):
        monkeypatch.setattr(owner, name, inspect.getattr_static(owner, name))  # put back at the end
    runs: list[str] = []

    def again(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: runs.append("again") or run(*args)

    def run(x: torch.Tensor) -> torch.Tensor:
        runs.append("run")
        return x.sin()

    internals.wrap_checkpointed(again)
    x = torch.ones(2, requires_grad=True)
    for reentrant in (True, False):
        runs.clear()
        y = checkpoint.checkpoint(run, x, use_reentrant=reentrant)
        assert runs == ["run"]
        y.sum().backward()
        assert runs == ["run", "again", "run"]
    assert torch.equal(x.grad, 2 * x.detach().cos())  # pyright: ignore[reportArgumentType]


@rests_on("torch.autograd.forward_ad:_current_level", "no_grad and freeze stop nothing in forward mode")
def test_forward_mode(internals: Any) -> None:
    seen = []

    def square(x: torch.Tensor) -> torch.Tensor:
        seen.append(internals.forward_mode())
        return x * x

    one = torch.ones(())
    torch.func.grad(square)(one)
    torch.func.jvp(square, (one,), (one,))
    with torch.autograd.forward_ad.dual_level():
        square(one)
    assert seen == [False, True, True]
    assert not internals.forward_mode()


@rests_on("torch.autograd.forward_ad:_set_fwd_grad_enabled", "no_grad of a boundary lets forward derivatives pass")
def test_without_tangents(internals: Any) -> None:
    def stopped(x: torch.Tensor) -> torch.Tensor:
        with internals.without_tangents():
            y = x * x
        return x + y

    one = torch.ones(())
    assert torch.func.jvp(stopped, (one,), (one,))[1] == 1
    assert torch.func.jvp(torch.square, (one,), (one,))[1] == 2


@rests_on("torch.nn.utils.stateless:_reparametrize_module", "freeze cuts nothing in a compiled update")
def test_swapped_parameters(internals: Any) -> None:
    module = nn.Linear(2, 1)
    weight = module.weight
    with internals.swapped_parameters(module, {name: p.detach() for name, p in module.named_parameters()}):
        frozen = module(torch.ones(2))
    assert not frozen.requires_grad
    assert module.weight is weight
    assert module(torch.ones(2)).requires_grad


@rests_on("torch._dynamo.config:trace_autograd_ops", "compile=update is refused")
def test_traced_backward(internals: Any) -> None:
    def slope(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(x.square().sum(), x)[0]

    torch.compiler.reset()
    assert internals.trace_backward()
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(torch.compile(slope, backend="eager", fullgraph=True)(x), 2 * torch.ones(3))
    torch.compiler.reset()


@rests_on("torch._dynamo.exc:TorchDynamoException", "a loss that is no one graph ends compile=update with a traceback")
def test_not_one_graph(internals: Any) -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(internals.not_one_graph()):
        torch.compile(breaks, backend="eager", fullgraph=True)(torch.ones(1))


@rests_on("torch._dynamo.config:recompile_limit", "compile=true stops at eight compilations, those of all networks")
def test_compilations(internals: Any) -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    try:
        for limit, expected in ((2, 2), (64, 4)):
            compiled.clear()
            torch.compiler.reset()
            internals.allow_recompiles(limit)
            function = torch.compile(lambda x: x + 1, backend=backend, dynamic=False)
            for axes in range(4):
                function(torch.ones([1] * axes))
            assert len(compiled) == expected
        assert internals.has_dynamo()  # an audit then asks for eager mode
    finally:
        internals.allow_recompiles(8)  # PyTorch's own
        torch.compiler.reset()


# ---- Lightning


def fit(module: Any, *callbacks: Any, checkpoint: Any = None, prepare: Any = None, **options: Any) -> Any:
    import lightning as L

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_model_summary": False} | quiet | options
    trainer = L.Trainer(callbacks=list(callbacks), **options)
    if prepare is not None:
        prepare(trainer)
    trainer.fit(module, ckpt_path=checkpoint)
    return trainer


class Loader(list):
    """Three batches; it can be told where to go on."""

    position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": 7}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def line(
    seen: list[Any] | None = None, number: Callable[[Any], Any] = lambda trainer: None, automatic: bool = True
) -> Any:
    """A module of one weight, and what ``number`` says at each of its batches."""
    import lightning as L

    class Line(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = automatic
            self.layer, self.loader = nn.Linear(1, 1), Loader(torch.ones(3, 1, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if seen is not None:
                seen.append(number(self.trainer))
            if not automatic:
                self.optimizers().step()
            return self.layer(batch).sum()

        def train_dataloader(self) -> Any:
            return self.loader

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Line()


quietly = pytest.mark.filterwarnings(  # what Lightning says of so small a training
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*mid-epoch"
)


@quietly
@rests_on("lightning.pytorch.Trainer.fit_loop.epoch_loop", "the step at which a loss became NaN is named wrongly")
def test_batch_number(internals: Any) -> None:
    fit(line(seen := [], internals.batch_number), max_epochs=2, accumulate_grad_batches=2)
    assert seen == [0, 1, 2, 3, 4, 5]


@quietly
@rests_on("lightning.pytorch.Trainer.fit_loop, in a checkpoint", "ranks do not resume at their own place in the data")
def test_loader_states(internals: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    fit(line(), max_steps=2).save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    assert internals.loader_states(content) == [{"position": 7}]
    internals.set_loader_states(content, [{"position": 5}])
    torch.save(content, file)
    module = line()
    fit(module, checkpoint=file, max_steps=3, max_epochs=-1)
    assert module.loader.position == 5


@quietly
@rests_on("lightning.pytorch.Trainer.restore", "a damaged checkpoint ends a run with a traceback instead of a line")
def test_restore(internals: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    fit(line(), max_steps=2).save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    content["optimizer_states"][0]["param_groups"] = []
    torch.save(content, file)
    with pytest.raises(ValueError, match="different number of parameter groups") as damaged:
        fit(line(), checkpoint=file)
    assert internals.raised_in_restore(damaged.value)
    with pytest.raises(ZeroDivisionError) as other:
        fit(line([], lambda trainer: 1 / 0))
    assert not internals.raised_in_restore(other.value)


@quietly
@pytest.mark.usefixtures("group")
@rests_on("lightning.pytorch.Trainer.fit_loop.epoch_loop", "every batch waits until all ranks have answered")
def test_no_rank_is_asked_for_sigterm(internals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.callbacks import LambdaCallback
    from lightning.pytorch.strategies import SingleDeviceStrategy

    asked = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *args, **kwargs: asked.append(args))
    strategy = SingleDeviceStrategy("cpu")
    strategy.world_size = 2  # pyright: ignore[reportAttributeAccessIssue]
    start = LambdaCallback(on_train_start=lambda trainer, module: internals.ask_no_rank_for_sigterm(trainer))
    fit(line(seen := [], lambda trainer: trainer.world_size), start, strategy=strategy)
    assert seen == [2, 2, 2]
    assert asked == []


@quietly
@rests_on("lightning.pytorch.trainer.call:_call_callback_hooks", "hooks that nobody wrote cost a step their call again")
def test_a_hook_that_is_none_is_not_called(internals: Any) -> None:
    from lightning.pytorch.callbacks import Callback

    class Own(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(self.on_train_batch_start)

    seen: list[Any] = []
    module = line([], lambda trainer: internals.rest_idle_hooks(trainer, module))
    fit(module, Own(), max_steps=2)
    assert seen == [None, None]


@quietly
@rests_on(
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop", "plain batches go through Lightning's layers"
)
def test_plain_epoch(internals: Any) -> None:
    """How it does it is compared with Lightning's own in conf_tests/audit/test_plain_epoch.py."""
    assert internals.plain_epoch(line()) is None

    def look(trainer: Any) -> bool:
        return internals.plain_epoch(trainer.lightning_module) is trainer.fit_loop.epoch_loop

    for short in (False, True):
        module = line(seen := [], look, automatic=False)
        fit(module, max_steps=2, check_val_every_n_epoch=None, prepare=internals.shorten_batches if short else None)
        assert seen == [short, short]


# ---- Hydra


@rests_on("torch.nn.Module's hooks of state dicts", "a state dict of a recipe under trainer=fsdp holds shards")
def test_state_dict_hooks(internals: Any) -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    kept = module[0].register_state_dict_pre_hook(lambda *_: seen.append("kept"))
    seen: list[str] = []
    with internals.keep_state_dicts_whole(module):
        module[0].register_state_dict_pre_hook(lambda *_: seen.append("saving"))
        module[0].register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    module.load_state_dict(module.state_dict())
    assert seen == ["kept"]
    kept.remove()


@rests_on("hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments", "a sweep starts without a check")
def test_product(internals: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(["a=1,2", "+b.c='x,y'", "d=range(2)"])
    expected = [[f"a={a}", "+b.c='x,y'", f"d={d}"] for a in (1, 2) for d in (0, 1)]
    assert internals.product(overrides) == expected


@rests_on("hydra._internal.config_loader_impl:ConfigLoaderImpl.load_configuration", "a sweep composes three times")
def test_compose_once(internals: Any, tmp_path: Path) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    bad = ("x=1", "~a.b", "+a=1", "group=three", "b='${'")

    def refusal(wrong: str) -> str:
        with pytest.raises(HydraException) as refused:
            loader.load_configuration("train", [wrong], RunMode.RUN)
        return f"{refused.value} {refused.value.__cause__}"

    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "one.yaml").write_text("c: 1\nd: 1\n")
    (tmp_path / "group" / "two.yaml").write_text("c: 2\n")
    (tmp_path / "train.yaml").write_text("defaults: [group: one, _self_]\na: 1\nb: ${a}\n")
    value = ["hydra.mode=MULTIRUN", "a=2", "hydra.job.name=me", "+e.f={g: 1}"]
    others = [
        ["group=two", "group.c=3"],
        ["group.c=3", "group=two", "~group.c"],
        ["group.c=3", "group={c: 5}"],
        ["~group"],
    ]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = [loader.load_configuration("train", each, RunMode.RUN) for each in (value, *others)]
        refusals = [refusal(wrong) for wrong in bad]
        internals.compose_once(loader)
        found = [loader.load_configuration("train", each, RunMode.RUN) for each in (value, *others)]
        for one, other in zip(whole, found, strict=True):
            assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(other)
            assert OmegaConf.is_struct(other)
        found[0].a = 5
        (tmp_path / "train.yaml").write_text("defaults: [group: one, _self_]\na: 1\nb: 7\n")
        again = loader.load_configuration("train", overrides=value, run_mode=RunMode.RUN)
        assert OmegaConf.to_yaml(again) == OmegaConf.to_yaml(whole[0])
        swept = loader.load_sweep_config(whole[0], ["a=2"])
        assert swept.hydra.overrides.task == ["a=2"]
        read = [(["a=3"], 7), (["a=4"], 7), (["a=4", "hydra.job.name=me"], 7)]
        assert [loader.load_configuration("train", each, RunMode.RUN).b for each, _ in read] == [b for _, b in read]
        for wrong, words in zip(bad, refusals, strict=True):
            assert refusal(wrong) == words


@rests_on(
    "hydra._internal.instantiate._instantiate2:_resolve_target", "Hydra's own section may run anything, unchecked"
)
def test_before_targets(internals: Any) -> None:
    program = (
        "from hydra.utils import instantiate\n"
        f"from {internals.__name__} import before_targets\n"
        "def check(key, target):\n"
        "    print(key, target)\n"
        "    if target == 'os.getcwd': raise SystemExit('refused')\n"
        "before_targets(check)\n"
        "before_targets(None)\n"  # the first stays
        "print(instantiate({'_target_': 'builtins.dict', 'a': {'_target_': 'builtins.list'}}))\n"
        "instantiate({'_target_': 'os.getcwd'})\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert sorted(ran.stdout.splitlines()) == [
        "_target_ builtins.dict",
        "_target_ os.getcwd",
        "a._target_ builtins.list",
        "{'a': []}",
    ]
    assert ran.stderr.splitlines()[-1] == "refused"


@rests_on("hydra._internal:core_plugins", "Hydra's own launcher is refused, and with it every sweep")
def test_plugins(internals: Any) -> None:
    from hydra import compose, initialize

    with initialize(version_base="1.3"):
        hydra = compose(return_hydra_config=True).hydra
    for plugin in (hydra.launcher, hydra.sweeper):
        assert plugin["_target_"].startswith(f"{internals.PLUGINS}.")


@rests_on("omegaconf._utils:get_yaml_loader", "--help takes a third longer, --cfg job 5 %")
def test_read_by_libyaml(internals: Any) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", READ_YAML, internals.__name__], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    before, after = ran.stdout.split("by libyaml\n")
    assert "'a': [0.001, 1000, 16, inf, True, None, '2026-11-27', 'x']" in before
    assert "'e': {'c': 'é', 'd': '2'}" in before
    assert before.count("Error") == 12
    assert before.count('in "the file", line') == 7  # one tells two places
    assert [line for line in before.splitlines() if line.startswith("parsed")] == ["parsed in Python"]
    assert after == 2 * before.replace("in Python", "in C")


READ_YAML = r"""
import sys
import tempfile
from importlib import import_module
from omegaconf import OmegaConf

GOOD = "a: [1e-3, 1_000, 0x10, .inf, on, ~, 2026-11-27, '${f}']\nb: &b {c: '1', d: !!str 2}\ne: {<<: *b, c: é}\nf: x"
WRONG = ["a: 1\na: 2", "a: [", "a: 'b", "a: *b", "a: \x07", "a: !!python/name:os.system x"]

def tell():
    print(OmegaConf.to_container(OmegaConf.create(GOOD), resolve=True))
    for text in WRONG:
        try:
            print("accepted", OmegaConf.create(text))
        except Exception as error:
            print(type(error).__name__, error)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            try:
                print("accepted", OmegaConf.load(file.name))
            except Exception as error:
                print(type(error).__name__, str(error).replace(file.name, "the file"))
    seen = set()
    sys.setprofile(lambda frame, event, arg: seen.add(frame.f_globals["__name__"]))
    OmegaConf.create(GOOD)
    sys.setprofile(None)
    print("parsed in", "Python" if "yaml.scanner" in seen else "C")

tell()
print("by libyaml")
for _ in range(2):  # the second changes nothing
    import_module(sys.argv[1]).read_by_libyaml()
    tell()
"""


# ---- nowhere else

MAY = {  # files that may use private names: those of each library, and what tests need to look behind them
    *(f"{home.replace('.', '/')}.py" for home in HOMES.values()),
    "conf_tests/installed.py",
}
DOCUMENTED = {  # names that begin with an underscore and are public all the same
    "_target_",  # Hydra's key
    "sys._getframe",
    "os._exit",
    "_repr_html_",  # what a notebook asks an object for
    "torch.utils._python_dispatch",  # the notes on extending PyTorch
}
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")
OURS = ("stopgrad", "recipes", "conf_tests", "benchmarks", "__future__")
FOLDERS = ("stopgrad", "recipes", "benchmarks", "docs", "conf_tests")
SOURCES = [ROOT / "train.py", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def defined_in(tree: ast.AST) -> set[str]:
    """Private names that a file gives to something of its own."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_its_own(node):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def of_its_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_uses(tree: ast.AST, inherited: Collection[str] = ()) -> Iterator[tuple[int, str]]:
    """(line, text) of each use of what others keep private.

    Args:
        inherited: private names that our other files define; through ``self`` they may be used here.
    """
    own = defined_in(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"(torch|lightning|hydra|omegaconf)(\.\w+)+", node.value) else []
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            may = {*own, *(inherited if of_its_own(node) else ()), *DOCUMENTED}
            if node.attr not in may and ast.unparse(node) not in DOCUMENTED:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)) and name not in own:
                yield node.lineno, ast.unparse(node)
        for name in names:
            known = any(name == public or name.startswith(f"{public}.") for public in DOCUMENTED)
            if name.partition(".")[0] not in OURS and any(map(is_private, name.split("."))) and not known:
                yield node.lineno, name


def test_private_names_of_others_stand_in_one_file_for_each_library() -> None:
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in SOURCES}
    inherited = set().union(*map(defined_in, trees.values()))
    found = [
        f"{file}:{number}: {text}"
        for file, tree in trees.items()
        if file not in MAY
        for number, text in private_uses(tree, inherited)
    ]
    assert not found, "private to its library; use what is public, or go through one of:\n" + "\n".join(
        [*sorted(MAY), "", *found]
    )


@pytest.mark.parametrize("file", sorted(MAY))
def test_files_for_private_names_have_some(file: str) -> None:
    assert list(private_uses(ast.parse((ROOT / file).read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._utils import _flatten_dense_tensors",
        "from torch.overrides import _get_current_function_mode_stack as stack",
        "import torch\ntorch._C._functorch.peek_interpreter_stack()",
        "tensor._version",
        "self.layer._parameters",
        "class Mine(ModelCheckpoint):\n    def f(self): self._save_checkpoint(None, '')",
        "super()._save_checkpoint()",
        "getattr(trainer, '_state')",
        "hasattr(leaf, '_base')",
        "get_class('hydra._internal.core_plugins.basic_sweeper.BasicSweeper')",
        "def f(trainer): trainer.loop._done = True",
    ],
)
def test_private_use_is_seen(source: str) -> None:
    assert {number for number, _ in private_uses(ast.parse(source))} == {len(source.splitlines())}


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations",
        "from stopgrad.runner.launch import _rank",
        "from . import _mine",
        "class Mine:\n    def __init__(self): self._name = 1\n    def same(self, other): return other._name",
        "class Mine:\n    def _f(self): return self._f()",
        "x.__class__, x.__dict__",
        "config.recipe._target_",
        "sys._getframe(1)",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "'a torch._C in a sentence'",
    ],
)
def test_what_is_our_own_or_documented_passes(source: str) -> None:
    assert list(private_uses(ast.parse(source))) == []


def test_what_our_other_files_define_passes_through_self_alone() -> None:
    assert list(private_uses(ast.parse("self._inherited"), {"_inherited"})) == []
    assert list(private_uses(ast.parse("other._inherited"), {"_inherited"})) == [(1, "other._inherited")]


def test_words_of_a_broken_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(internals: Any) -> None:
        assert internals.version_of(torch.ones(1)) == 0

    monkeypatch.setitem(HOMES, "torch", "types")
    gone = rests_on("torch:Tensor._never_there", "nothing works")(test)
    with pytest.raises(pytest.fail.Exception, match=r"^torch:Tensor._never_there is gone in torch .*: nothing works$"):
        gone()
    changed = rests_on("torch:Tensor._version", "nothing works")(test)
    with pytest.raises(AssertionError, match=r"^torch:Tensor._version is not what it was, in torch .*: nothing works$"):
        changed()
