"""The mode that follows values through a step and names the line of each operation. It is on inside an audit only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from stopgrad.cuts import watcher
from stopgrad.cuts.torch_internals import functorch_level, is_view, next_number, top_mode, without_overrides
from stopgrad.flow.frames import graphless_line, in_optimizer, user_line
from stopgrad.flow.graph import Nodes, Walk
from stopgrad.flow.known import Known, Tensors
from stopgrad.flow.ops import (
    KINDS,
    NO_WRITE,
    OVERWRITES,
    Operation,
    changes_nothing,
    graphless_mode,
    leaves_of,
    loses_type,
    operation,
    written_by,
)
from stopgrad.flow.own import QUIET, Awaited
from stopgrad.flow.threads import OtherThreads
from stopgrad.flow.values import CHECKPOINT, place


def recorder() -> Recorder | None:
    """The recorder of the audit that is on in this thread, or None."""
    standing = watcher.watcher()
    return standing if isinstance(standing, Recorder) else None


class Recorder(TorchFunctionMode):
    """Follows values from the parts of a model to its losses, through every operation and every cut.

    Args:
        roots: each leaf tensor to follow, with the bits of the parts that it belongs to and its name.
        bit_of: gives the bit of a boundary, by its column ``stop.NAME``.

    Attributes:
        values: the value graph; it stays when the recorder is off.
        escapes: values that left as Python numbers or arrays, in order.
        unseen: what ran that cannot be followed, and its line, or "": functorch, or another thread.
        probes: by id, the boundary and the live tensor that crossed it; kept only while ``on_probe`` is None.
        leaves: leaf tensors that were used, require grad and are no part of the model.
        on_probe: called with the name of the boundary and the live tensor that crosses it.
        on_backward: called with a tensor before its ``backward()``.
        strategies: of each boundary that was crossed, as its choice is spelled.
        awaited: the loss that was reported and is not measured yet.
        newest_backward: autograd's number when the last backward began: a graph that is newer is whole.
        tensors: the value of each tensor.
    """

    def __init__(self, roots: Mapping[Tensor, tuple[int, str]], bit_of: Callable[[str], int]) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.tensors = Tensors(roots)
        self.values, self.leaves = self.tensors.values, self.tensors.leaves
        self.escapes: list[int] = []
        self.unseen = ""
        self.probes: dict[int, tuple[str, Tensor]] = {}
        self._fresh: list[tuple[int, Tensor]] = []
        self.on_probe: Callable[[str, Tensor], None] | None = None
        self.on_backward: Callable[[Tensor], None] | None = None
        self.strategies: dict[str, str] = {}
        self.awaited: Awaited | None = None
        self.newest_backward = 0
        self._paused = self._is_aside = False
        self._at_first: Callable[[], None] | None = None
        self._bit_of = bit_of
        self._numbers: dict[float, int] = {}  # numbers that left through item or tolist
        self._others = OtherThreads(self.tensors.roots, self._computed_elsewhere)

    def __enter__(self) -> Recorder:
        watcher.stand(self)
        self.newest_backward = next_number()
        self.tensors.nodes = Nodes(self.newest_backward)
        self._others.begin()
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.off()

    def off(self) -> None:
        """Stop recording; nothing where that was done."""
        try:
            if top_mode() is self:
                super().__exit__(None, None, None)
        finally:
            self._is_aside = False
            watcher.leave(self)
            self._others.leave()
            self.on_probe = self.on_backward = self.awaited = None  # a graph holds this, and they its losses
            self.tensors.clear()
            for store in (self._numbers, self.probes, self._fresh):
                store.clear()

    def settle(self) -> None:
        """Measure the loss that is awaited, if there is one, before anything else happens."""
        self.back("what came after an optimiser's step that raised")
        awaited, self.awaited = self.awaited, None
        if awaited is not None:
            awaited.measure()

    def _computed_elsewhere(self, what: str) -> None:
        self.unseen = self.unseen or what
        self.tensors.alone = False

    @contextmanager
    def pause(self, at_first: Callable[[], None] | None = None) -> Iterator[None]:
        """Nothing is recorded inside: the audit's own measurements, an optimiser's step.

        Args:
            at_first: called before the first operation inside, such as one of a checkpoint that runs again.
        """
        before, self._paused, self._at_first = self._paused, True, at_first
        try:
            yield
        finally:
            self._paused, self._at_first = before, None

    def aside(self) -> bool:
        """See no operation until :meth:`back`: a tenth of the time of passing each by; False where that cannot be."""
        if top_mode() is not self or self.awaited is not None:
            return False
        super().__exit__(None, None, None)
        self._is_aside = True
        return True

    def back(self, unseen: str = "") -> None:
        """See operations again, after :meth:`aside`.

        Args:
            unseen: what may have run meanwhile that should have been seen.
        """
        if self._is_aside:
            self._is_aside = False
            self.unseen = self.unseen or unseen
            super().__enter__()

    def follow_modules(self, names: Mapping[nn.Module, str]) -> list[RemovableHandle]:
        """Note in which of these modules each operation runs, until the hooks are removed."""

        def enter(module: nn.Module, args: Any) -> None:
            if module in names:
                self.tensors.modules.append(names[module])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if module in names and self.tensors.modules:
                self.tensors.modules.pop()

        return [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]

    # ---- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        optimizes = in_optimizer()
        if optimizes and self.awaited is None:
            return func(*args, **kwargs)
        kind = KINDS.get(func)
        if kind == "look" and self.tensors.knows(args[0]):
            return self._seen(func(*args, **kwargs))
        if kind == "backward":
            if func is Tensor.backward and self.on_backward is not None and not self._paused:
                self.on_backward(args[0])
            self.newest_backward = next_number()
        if self.awaited is not None and func not in QUIET:
            own = self.awaited.own(func, args, kwargs)
            if own is not None:
                self.awaited = None
                return own()
            self.settle()
        if self._paused and self._at_first is not None:
            at_first, self._at_first = self._at_first, None
            at_first()
        if self._paused or kind == "valueless" or func is Tensor.backward or optimizes:
            return func(*args, **kwargs)
        op = operation(func)
        inputs = [*leaves_of(args), *leaves_of(kwargs)] if kwargs else leaves_of(args)
        known, live = [], False
        for tensor in inputs:
            value = self.tensors.value(tensor)
            if value is not None:
                known.append((tensor, value))
                live = live or tensor.requires_grad
        numbers = self._came_back(args, kwargs) if self._numbers else []
        begin = next_number()
        result = self._seen(func(*args, **kwargs))
        if live and op.plain and type(result) is Tensor and "out" not in kwargs and self._is_new(result, known):
            self.tensors.made(result, op.name, [value for _, value in known] + numbers, begin)
        elif known or numbers:
            if op.escape:
                self._escape(op.escape, [v for _, v in known], result)
            elif (targets := written_by(op, args, kwargs)) is not None:
                self._write(func, op, targets, args, known, numbers, begin)
            elif live and op.by_number and changes_nothing(args, kwargs) and result.requires_grad:
                self.tensors.attach([(result, known[0][1])], begin)
            else:
                self._result(op, inputs, leaves_of(result), known, numbers, live, begin)
        return result

    def _is_new(self, result: Tensor, known: Sequence[Known]) -> bool:
        """It is a live tensor that was made where gradients are enabled, and nothing that was handed through."""
        is_live = result.requires_grad and torch.is_grad_enabled() and id(result) not in self.tensors.roots
        return is_live and not _is_among(result, known)

    def _came_back(self, args: Any, kwargs: Any) -> list[int]:
        """The values of the numbers among the arguments that left PyTorch before."""
        return [self._numbers[n] for n in leaves_of((args, kwargs), float) if n in self._numbers]

    def _seen(self, result: Any) -> Any:
        """What an operation made, which was not inside a transform of torch.func, or it is noted."""
        if functorch_level() is not None and not (self.unseen or self._paused):
            self.unseen = "functorch at " + place(*user_line())
        return result

    def _result(
        self,
        op: Operation,
        inputs: list[Tensor],
        outputs: list[Tensor],
        known: list[Known],
        numbers: list[int],
        live: bool,
        begin: int,
    ) -> None:
        """An operation made new tensors. Outputs that are alike share one value."""
        mode, name = graphless_mode(), op.name
        site, in_checkpoint = graphless_line() if mode else (user_line(), False)
        if in_checkpoint:
            name = CHECKPOINT
        every = [value for _, value in known] + numbers
        made: dict[Any, int] = {}
        attached: list[Known] = []
        for i, out in enumerate(outputs):
            # Of some the i-th output is the i-th input, reshaped.
            parents = [v for t, v in known if t is inputs[i]] if op.pairwise else every
            if not parents or _is_among(out, known):
                continue  # handed through as it was: contiguous(), to(the same dtype)
            cut = op.cut
            if not (cut or mode or out.requires_grad) and (live or loses_type(out, [t for t, _ in known])):
                cut = "no_derivative"
            key = (out.requires_grad, cut, *parents)
            value = made.get(key)
            if value is None:
                value = self.tensors.new(name, parents, cut=cut, mode=mode, live=out.requires_grad, site=site)
                made[key] = value
            attached.append((out, value))
        self.tensors.attach(attached, begin)

    def _write(
        self,
        func: Any,
        op: Operation,
        targets: Sequence[Tensor],
        args: Any,
        known: list[Known],
        numbers: list[int],
        begin: int,
    ) -> None:
        """An operation in place: its targets now depend on its inputs too, and so does every alias of them."""
        mode, cut = graphless_mode(), op.cut
        site = user_line(function_calls=bool(mode))
        lists = [a for a in args if isinstance(a, list | tuple) and len(a) == len(targets)] if len(targets) > 1 else []
        attached: list[Known] = []
        for i, target in enumerate(targets):
            others = {
                id(a[j]) for a in lists for j in range(len(a)) if j != i
            }  # torch._foreach_*: the i-th of each list
            overwritten = id(target) if func in OVERWRITES else None
            parents = numbers + [v for t, v in known if id(t) not in others and id(t) != overwritten]
            if id(target) in self.tensors.roots and parents == [self.tensors.roots[id(target)]]:
                continue  # a parameter changed by itself alone
            live = target.requires_grad
            value = self.tensors.new(op.name, parents, cut=cut, mode=mode, live=live, site=site)
            attached.append((target, value))
            if func not in NO_WRITE:
                self.tensors.wrote(target, value)
        self.tensors.attach(attached, begin)

    def _escape(self, kind: str, parents: list[int], result: Any) -> None:
        value = self.tensors.new(kind, parents, cut=kind)
        self.escapes.append(value)
        if kind != "numpy":
            numbers = leaves_of([result], float)
            self._numbers.update((n, value) for n in numbers if n != n // 1)  # 0.0 and 1.0 prove nothing

    # ---- boundaries

    @contextmanager
    def inside(self, name: str, kind: str) -> Iterator[None]:
        """The producer of a boundary runs: cuts of this kind are the boundary's, and take its line."""
        self.settle()
        self.tensors.boundaries.append((name, kind, user_line()))
        try:
            yield
        finally:
            self.tensors.boundaries.pop()

    def gate(self, name: str, leaf: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """``leaf`` crosses a boundary that lets gradient through: it gets a node of its own, which is then gated."""
        self.settle()
        before, line = self.tensors.value(leaf), user_line()
        begin = next_number()
        with self.pause():
            crossing = torch.ops.aten.alias(leaf)
            result, live = cut(crossing), crossing.requires_grad  # not asked for outside: that would be an operation
        value = self._crossing(name, before, live=live, line=line)
        if not live:
            value = self.tensors.new("alias", (value,), cut="requires_grad", site=line, boundary=name)
        self.tensors.attach([(crossing, value), (result, value)], begin)
        if live and self.on_probe is not None:
            self.on_probe(name, crossing)
        elif live:
            self.probes[id(crossing)] = name, crossing
            self._fresh.append((begin, crossing))
        return result

    def cut(self, name: str, kind: str, leaf: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """``leaf`` crosses a boundary that cuts it."""
        self.settle()
        before, line = self.tensors.value(leaf), user_line()
        begin = next_number()
        with self.pause():
            result = cut(leaf)
        crossing = self._crossing(name, before, live=False, line=line)
        self.tensors.attach([(result, self.tensors.new(kind, (crossing,), cut=kind, site=line, boundary=name))], begin)
        return result

    def freeze(self, name: str, leaf: Tensor, args: Any) -> Tensor:
        """``leaf`` was made under ``freeze``: blocked, unless a parameter that nobody froze made it live."""
        self.settle()
        inputs = [t for t in leaves_of(args) if t.requires_grad]
        walk = Walk(leaf, stop={t.grad_fn for t in inputs})
        reached = walk.leaves.keys() - {id(t) for t in inputs}
        # A view of a parameter is called live once that is unfrozen again, but nothing flows from it.
        if reached and not (leaf.grad_fn is None and is_view(leaf)):
            return self.gate(name, leaf, lambda crossing: crossing)
        before, line = self.tensors.value(leaf), user_line()
        crossing = self._crossing(name, None, live=False, line=line)
        frozen = self.tensors.new("freeze", (crossing,), cut="requires_grad", site=line, boundary=name)
        parents = [v for v in (before, frozen) if v is not None]
        self.tensors.attach([(leaf, self.tensors.new("freeze", parents, live=leaf.requires_grad, site=line))])
        return leaf

    def use(self, leaf: Tensor, line: tuple[str, int]) -> tuple[Tensor, int]:
        """One use of a live value: an alias, with a value of its own; -1 in its place if it depends on no part."""
        self.settle()
        with without_overrides():
            before = self.tensors.value(leaf)
            if before is None:
                return leaf, -1
            begin = next_number()
            alias = torch.ops.aten.alias(leaf)
            value = self.tensors.new("alias", (before,), live=True, site=line)
            self.tensors.attach([(alias, value)], begin)
        return alias, value

    def value(self, tensor: Tensor) -> int | None:
        """What the tensor was computed from, or None if it depends on no part of the model."""
        return self.tensors.value(tensor)

    def describe(self, node: Any) -> str:
        """The operation of an autograd node, and its line."""
        value = self.tensors.nodes.value(node)
        return node.name() if value is None else self.values.text(value)

    def fresh_probes(self) -> list[tuple[int, Tensor]]:
        """The tensors that crossed since the last call, each with autograd's number of its node."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _crossing(self, name: str, before: int | None, *, live: bool, line: tuple[str, int]) -> int:
        parents = () if before is None else (before,)
        return self.tensors.new(f"stop.{name}", parents, parts=self._bit_of(f"stop.{name}"), live=live, site=line)


def _is_among(out: Tensor, known: Sequence[Known]) -> bool:
    for tensor, _ in known:  # noqa: SIM110 - any() takes three times as long, for every operation
        if tensor is out:
            return True
    return False
