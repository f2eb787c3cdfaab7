"""All that we use of PyTorch beyond what it makes public: nothing private of it stands in any other file.

Tried with torch 2.13 and 2.14; ``pytest -m older_torch`` tries the oldest that we support. Where a new version breaks
one of these, conf_tests/test_private.py says which, and what no longer works. What an audit calls for every operation
is the C function itself.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.utils import stateless
from torch.optim import Optimizer
from torch.overrides import _get_current_function_mode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as _tree_map
from torch.utils.hooks import RemovableHandle


def tree_map(do: Callable[[Any], Any], tree: Any) -> Any:
    """``torch.utils._pytree.tree_map``, which takes 6 us to find that a tensor is a leaf."""
    return do(tree) if isinstance(tree, Tensor) else _tree_map(do, tree)


REENTRANT = "CheckpointFunctionBackward"
"""The name of a reentrant checkpoint's node, after the private class in ``torch.utils.checkpoint``."""

functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
"""What of ``torch.func`` runs now, or None: ``torch._C._functorch.peek_interpreter_stack``."""

backward_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore[reportAttributeAccessIssue]
"""The number of the backward that runs in this thread, or -1: ``torch._C._current_graph_task_id``."""

version_of: Callable[[Tensor], int] = Tensor._version.__get__  # pyright: ignore[reportAttributeAccessIssue]
"""How many writes in place a tensor and its aliases have seen: ``Tensor._version``."""

base_of: Callable[[Tensor], Tensor | None] = attrgetter("_base")
"""The tensor of which this one is a view, or None: ``Tensor._base``."""

is_view: Callable[[Tensor], bool] = Tensor._is_view
"""Whether autograd knows the tensor as a view of another: ``Tensor._is_view``."""

storage_id: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
"""The address of a storage's C++ object, also where there is no data: ``UntypedStorage._cdata``."""

sequence_number: Callable[[Any], int] = methodcaller("_sequence_nr")
"""The number that autograd gave to a node, in order of creation in one thread: ``Node._sequence_nr``."""

next_number: Callable[[], int] = torch.autograd._get_sequence_nr  # pyright: ignore[reportPrivateImportUsage]
"""The number that autograd will give to the next node of this thread: ``torch.autograd._get_sequence_nr``."""

run_backward: Callable[..., tuple[Tensor | None, ...]] = torch.autograd.graph._engine_run_backward
"""What ``torch.autograd.grad`` does after it has taken off all function modes: it leaves them on."""

foreach_norm: Callable[..., Sequence[Tensor]] = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
"""The norm of each of many tensors in one call: ``torch._foreach_norm``."""

without_overrides: Callable[[], AbstractContextManager[None]] = torch._C.DisableTorchFunction
"""No function mode sees what runs inside: ``torch._C.DisableTorchFunction``."""

post_accumulate_hooks: Callable[[Tensor], Any] = attrgetter("_post_accumulate_grad_hooks")
"""Hooks that run after a leaf's ``.grad`` is written, or None: ``Tensor._post_accumulate_grad_hooks``."""

gradient_hooks: Callable[[Tensor], Any] = attrgetter("_backward_hooks")
"""Hooks on a tensor's gradient, or None: ``Tensor._backward_hooks``."""

swapped_parameters: Callable[..., AbstractContextManager[None]] = stateless._reparametrize_module
"""Inside, a module has other tensors in the place of parameters: ``torch.nn.utils.stateless._reparametrize_module``."""

non_persistent: Callable[[nn.Module], set[str]] = attrgetter("_non_persistent_buffers_set")
"""Names of the buffers of a module that no checkpoint holds: ``Module._non_persistent_buffers_set``."""


sees_backward: bool = "handle_torch_function" in torch.autograd.backward.__code__.co_names
"""Whether a function mode sees ``torch.autograd.backward``, as it sees ``Tensor.backward``: not before torch 2.13."""


record_function: Sequence[Any] = (
    torch.ops.profiler._record_function_enter_new,
    torch.ops.profiler._record_function_exit,
    torch.ops.profiler._record_function_exit._RecordFunction,
)
"""What an optimiser's ``step`` and ``zero_grad`` call for a profiler: ``torch.ops.profiler._record_function_*``."""


def around_step(
    optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., Any]
) -> tuple[list[RemovableHandle], Callable[[], bool]]:
    """Hooks between which an optimiser's step runs and no other hook of it; and whether that is still so.

    They are the last of ``Optimizer._optimizer_step_pre_hooks``, which come after the global ones, and the first of
    ``_optimizer_step_post_hooks``, which come before them.
    """
    first, last = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
    pre: Any = optimizer._optimizer_step_pre_hooks  # declared as dicts, and OrderedDicts
    post: Any = optimizer._optimizer_step_post_hooks
    post.move_to_end(last.id, last=False)
    return [first, last], lambda: next(reversed(pre)) == first.id and next(iter(post)) == last.id


def children_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children under all of their names, of which ``named_children`` gives the first: ``Module._modules``."""
    yield from ((name, child) for name, child in module._modules.items() if child is not None)


def default_store() -> Any:
    """The store that the ranks of the default process group share: ``distributed_c10d._get_default_store``."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def top_mode() -> Any:
    """The function mode that sees an operation first, or None: ``torch.overrides._get_current_function_mode``."""
    return _get_current_function_mode()


def saved_tensors(node: Any) -> Iterator[list[Tensor] | None]:
    """What a node has saved, one name after the other; None where it was freed: ``Node._raw_saved_*``."""
    for name in dir(node):
        if name.startswith("_raw_saved"):
            yield _saved(node, name)


def _saved(node: Any, name: str) -> list[Tensor] | None:
    try:
        raw = getattr(node, name)
        values = [each.data for each in (raw if isinstance(raw, tuple | list) else [raw])]
        if not any(value is not None for value in values) and hasattr(node, public := name.removeprefix("_raw")):
            getattr(node, public)  # raises if freed; nothing is stored, so nothing is recomputed
    except RuntimeError:
        return None
    return [value for value in values if isinstance(value, Tensor)]


def forward_mode() -> bool:
    """Whether a derivative is taken forwards, as by ``torch.func.jvp``: ``forward_ad._current_level``."""
    return forward_ad._current_level >= 0


def without_tangents() -> AbstractContextManager[None]:
    """For forward derivatives what ``no_grad`` is for backward ones: ``forward_ad._set_fwd_grad_enabled``."""
    return forward_ad._set_fwd_grad_enabled(False)


def wrap_checkpointed(again: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let each checkpoint that is made from now on run ``again(function)`` in its backward, in place of the function.

    There is no public way to what a checkpoint keeps: ``torch.utils.checkpoint.CheckpointFunction`` (reentrant) and
    ``_CheckpointFrame`` (not reentrant).
    """
    reentrant, frame = checkpoint.CheckpointFunction, checkpoint._CheckpointFrame
    forward, start = reentrant.forward, frame.__init__

    @functools.wraps(forward)
    def wrapped_forward(ctx: Any, run_function: Callable[..., Any], *args: Any) -> Any:
        result = forward(ctx, run_function, *args)
        ctx.run_function = again(run_function)
        return result

    @functools.wraps(start)
    def wrapped_start(self: Any, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        start(self, again(recompute_fn), *args, **kwargs)

    reentrant.forward = staticmethod(wrapped_forward)  # pyright: ignore[reportAttributeAccessIssue]
    frame.__init__ = wrapped_start


def has_static_graph(node: Any) -> bool:
    """Whether a node is the sink of a DDP with ``static_graph=True``: the ``ddp_weakref`` of ``_DDPSink``."""
    ddp = node.ddp_weakref() if hasattr(node, "ddp_weakref") else None
    return ddp is not None and ddp.static_graph


def has_dynamo() -> bool:
    """Whether ``torch.compile`` may have run: ``torch._dynamo`` is imported with its first use."""
    return "torch._dynamo" in sys.modules


def allow_recompiles(limit: int) -> None:
    """Set ``torch._dynamo.config.recompile_limit``; ``torch.compiler.config`` has it too, but not in 2.8."""
    from torch._dynamo import config  # takes a second to import

    config.recompile_limit = limit


def trace_backward() -> bool:
    """Let what is compiled take gradients inside, and say if it can: ``torch._dynamo.config.trace_autograd_ops``.

    ``torch._inductor.ir`` is kept from warning of each operation that is no sooner called from C++.
    """
    from torch._dynamo import config

    if can := hasattr(config, "trace_autograd_ops"):
        config.trace_autograd_ops = True
        logging.getLogger("torch._inductor.ir").setLevel(logging.ERROR)
    return can


def not_one_graph() -> type[Exception]:
    """What ``torch.compile(fullgraph=True)`` raises of what it cannot take whole: ``torch._dynamo.exc``."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


@contextmanager
def keep_state_dicts_whole(module: nn.Module) -> Iterator[None]:
    """Take off FSDP2's hooks, by which ``state_dict`` and ``load_state_dict`` would reshard a module that it manages.

    Modules keep such hooks in ``_state_dict_pre_hooks`` and ``_load_state_dict_pre_hooks``.
    """
    kept = [(each, set(each._state_dict_pre_hooks), set(each._load_state_dict_pre_hooks)) for each in module.modules()]
    yield
    for each, saving, loading in kept:
        for hooks, before in ((each._state_dict_pre_hooks, saving), (each._load_state_dict_pre_hooks, loading)):
            for key in hooks.keys() - before:
                del hooks[key]
