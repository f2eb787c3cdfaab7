"""The audit: which loss reaches which part of a model, measured by the gradient itself and explained by the values."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stopgrad.cuts.torch_internals import has_dynamo, without_overrides
from stopgrad.flow.advice import Facts, Ways
from stopgrad.flow.carried import Carried
from stopgrad.flow.contract import FlowContract, named_parts
from stopgrad.flow.escapes import Escapes
from stopgrad.flow.folding import Routes
from stopgrad.flow.frames import user_line
from stopgrad.flow.graph import Walk
from stopgrad.flow.labels import Labels
from stopgrad.flow.lookup import parameters_of
from stopgrad.flow.matrix import Cell, FlowMatrix
from stopgrad.flow.measure import zero_parameters
from stopgrad.flow.names import LossNames
from stopgrad.flow.page import audit_html
from stopgrad.flow.parts import Modules, find_parts, module_names, modules_in
from stopgrad.flow.probe import Probe
from stopgrad.flow.sites import Recorder
from stopgrad.flow.steps import Finding, listed_twice, unstepped
from stopgrad.flow.values import Trace, Value
from stopgrad.flow.zeros import suspected

# At or below this fraction of the largest gradient of the same loss, a gradient is rounding noise.
RTOL = 4 * torch.finfo(torch.float32).eps


class audit:
    """Follow one or more steps and tell where each loss's gradient goes::

        with audit(model) as a:
            loss = criterion(model(x), y)      # the forward runs inside: values are followed and lines are named
            a.loss("loss", loss)
        print(a.matrix())
        a.check(FlowContract({"loss": {"head": "open", "backbone": "blocked"}}))

    The gradient is measured in the loss's own backward, where that comes next after :meth:`loss`; else by
    ``torch.autograd.grad``, before anything else runs, under which tensor hooks of the user fire. No ``.grad`` is
    touched. Compiled modules run eagerly inside.

    Args:
        modules: a module (its parts are its children, and parameters of its own by their names), or
            ``{name: module, parameter, or nested lists and dicts of parameters}``. A parameter may be in several parts.
            See :func:`stopgrad.flow.parts.find_parts`.
        parts: the parts by dotted names or wildcards instead: ``["encoder.layers.*"]``, ``{"lora": "*.lora_*"}``.
        depth: so many levels of modules down.
        contract: one that will be checked: the submodules and parameters that it names are parts too.
        backward: report each loss whose ``backward()`` runs inside under this name, unless it was reported: so is a
            training audited without touching it. Where they are several, by where they are computed or go backward,
            each has its line: ``loss (train.py:12)``.
        boundaries: names of boundaries that are columns even if nothing crosses them.
        optimizers: those of the training. What :meth:`findings` finds with them is also warned of at the end.
        draw: also note in which module each operation runs, for :func:`stopgrad.drawing.flow_svg`; it installs hooks
            for all modules while the audit is on.
        rtol: a gradient at or below ``rtol`` times the largest of the same loss is ``zero``.

    Raises:
        ValueError: a part without parameters.
        RuntimeError: on entering: gradients are disabled, or another audit is on.
    """

    _repr_html_ = audit_html  # in a notebook

    def __init__(
        self,
        modules: Modules,
        *,
        parts: Mapping[str, Any] | Sequence[str] | None = None,
        depth: int = 1,
        contract: FlowContract | Mapping[str, Mapping[str, str]] | None = None,
        backward: str | None = None,
        boundaries: Sequence[str] = (),
        optimizers: Iterable[Optimizer] = (),
        rtol: float = RTOL,
        draw: bool = False,
    ) -> None:
        __tracebackhide__ = True  # pytest shows the caller's line
        found = find_parts(modules, parts, depth=depth, asked=named_parts(contract))
        self.parts, self.names = found.tensors, found.names
        self._tied, self._unions = found.tied, found.unions
        self._modules, self._backward, self._rtol = modules, backward, rtol
        self._columns = [*self.parts, *(f"stop.{name}" for name in boundaries)]
        self._optimizers = list(optimizers)
        self._reached: set[int] = set()  # ids of parameters at which a gradient arrived that is not rounding noise
        self._named = LossNames(backward or "")
        self._cells: dict[tuple[str, str], Cell] = {}
        self.draw = draw
        self.boundaries = list(boundaries)
        self.routes: Routes | None = None  # what is drawn
        self._loss_values: dict[Value, str] = {}
        self._bits = {column: 1 << i for i, column in enumerate(self._columns)}
        self._tensors = {id(t): t for part in self.parts.values() for t in part}
        self._parts_of: dict[int, list[str]] = {}
        for part, tensors in self.parts.items():
            for tensor in tensors:
                self._parts_of.setdefault(id(tensor), []).append(part)
        self._reported: set[int] = set()
        self._probe: Probe | None = None
        self._escapes = Escapes()
        self._recorder: Recorder | None = None
        self._stack = ExitStack()

    def __enter__(self) -> audit:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise RuntimeError("audit: gradients are disabled here; leave torch.no_grad() or inference_mode() first")
        self._recorder = Recorder(self._roots(), self._bit)
        self._probe = Probe(self._recorder, self._tensors, modules_in(self._modules))
        self._escapes = Escapes(self._recorder.values)
        self._reported.clear()
        self._recorder.on_backward = self._report_backward if self._backward else None
        with ExitStack() as stack:
            stack.callback(self._recorder.off)  # again, should an exception (Ctrl-C) reach into the first time
            stack.enter_context(self._recorder)
            if self.draw:
                names = module_names(self._modules)
                labels = Labels(self._parts_of, names, list(self.parts))
                labels.note_roots(self._roots())
                self.routes = Routes(labels, self._recorder)
                for handle in self._recorder.follow_modules(names):
                    stack.callback(handle.remove)
            if has_dynamo():  # a compiled graph hides its values and links every parameter
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.callback(self.settle)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            self._stack.close()
        finally:
            self._stack.close()  # what an exception kept from it
            self._recorder = None
            self._probe = None
            if self.routes is not None:
                self.routes.close()
        if not any(exc):
            for finding in self.findings():
                warnings.warn(str(finding), stacklevel=2)

    def _roots(self) -> dict[Tensor, tuple[int, str]]:
        bits: dict[Tensor, int] = {}
        for name, tensors in self.parts.items():
            for tensor in tensors:
                bits[tensor] = bits.get(tensor, 0) | self._bit(name)
        return {tensor: (mask, self.names[id(tensor)]) for tensor, mask in bits.items()}

    def _bit(self, column: str) -> int:
        if column not in self._bits:  # a boundary that is crossed for the first time
            self._bits[column] = 1 << len(self._columns)
            self._columns.append(column)
        return self._bits[column]

    @property
    def loss_values(self) -> dict[Value, str]:
        """The value of each loss that was reported, and its name."""
        self.settle()
        return self._loss_values

    @property
    def size(self) -> int:
        """How many values were followed so far."""
        return 0 if self._recorder is None else len(self._recorder.values)

    def value(self, tensor: Tensor) -> int | None:
        """The value of a tensor that hangs on the parts, as a place in the value graph; None of another one."""
        if self._recorder is None:
            return None
        with without_overrides():
            return self._recorder.value(tensor)

    def norms(self, name: str, tensor: Tensor) -> dict[int, float]:
        """The norm of a scalar's gradient at each parameter that it reaches, by ``id``; {} where it cannot be asked."""
        self._running(name)
        assert self._probe is not None
        found = self._probe.norms(name, tensor)
        return {} if found is None else found[0]

    def on_crossing(self, watch: Callable[[str, Tensor], None]) -> None:
        """Hand every live tensor that crosses a boundary to ``watch(boundary, tensor)`` instead of keeping it."""
        self._running("").on_probe = watch

    def loss(self, name: str, loss: Tensor) -> Tensor:
        """Measure a loss, before its backward, and return it.

        Raises:
            ValueError: it is no scalar tensor, has no graph, or the same graph was reported before.
            RuntimeError: outside the ``with`` block, in another thread, under ``no_grad``, or its graph was freed.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        self._running(name)
        if not torch.is_grad_enabled():
            raise RuntimeError(f"loss {name!r}: reported under no_grad; report it where gradients are enabled")
        self.admit(name, loss)
        assert self._probe is not None
        self._probe.measure(name, loss, self.carry, self.record)
        return loss

    def carry(self, loss: Tensor) -> Carried:
        """Measure what a backward of the loss carries from part to part, while it runs inside; to be drawn."""
        return Carried.nothing() if self.routes is None else self.routes.watch(loss)

    def _report_backward(self, loss: Tensor) -> None:
        recorder = self._running("")
        value = recorder.value(loss)
        if self._backward and not loss.is_leaf and value not in self._reported and loss.numel() == 1:
            made = ("", 0) if value is None else recorder.values.line(value)
            self.loss(self._named.of(made, user_line(), rename=self._rename), loss)

    def _rename(self, old: str, new: str) -> None:
        self._cells = {(new if loss == old else loss, part): cell for (loss, part), cell in self._cells.items()}
        self._loss_values = {value: new if loss == old else loss for value, loss in self._loss_values.items()}
        if self.routes is not None:
            self.routes.rename(old, new)

    def admit(self, name: str, loss: Tensor) -> None:
        """Refuse what is no loss, and a graph that was reported before."""
        __tracebackhide__ = True
        recorder = self._running(name)
        with without_overrides():
            is_loss = isinstance(loss, Tensor) and loss.numel() == 1
        if not is_loss:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f"loss {name!r}: expected a scalar tensor, got {what}")
        with without_overrides():
            value, live, is_leaf = recorder.value(loss), loss.requires_grad, loss.is_leaf
        if not live:
            cuts = [] if value is None else Trace(recorder.values, value).cuts_of(-1)
            reason = "; ".join(map(str, cuts)) or "nothing that it uses requires grad"
            raise ValueError(f"loss {name!r} has no graph: {reason}")
        if value in self._reported:
            raise ValueError(f"loss {name!r}: this graph was reported already; report each graph once")
        if value is not None and not is_leaf:
            self._reported.add(value)

    def record(
        self,
        name: str,
        loss: Tensor,
        norms: Mapping[int, float] | None,
        crossings: Mapping[str, Sequence[float]],
        *,
        died: Callable[[Sequence[Tensor], str, float], tuple[str, ...]] | None = None,
        zeros: Collection[int] | None = None,
        carried: Carried | None = None,
        scale: float = 1.0,
    ) -> None:
        """Enter a loss whose gradients were measured elsewhere (the Lightning callback does so in the real backward).

        Args:
            norms: the gradient's norm by ``id`` of the parameter, for those that got one; None if it is unknown.
            crossings: norms of the gradients at what crossed each boundary, by its name.
            died: asks where the gradient at some parameters, or else a boundary, became zero: not above a number.
            zeros: ids of the parameters that were all zeros before; by default those that are so now.
            carried: what the backward carried, to be drawn, ``scale`` times too large.
        """
        recorder = self._running(name)
        with without_overrides():
            value = recorder.value(loss)
        if value is None:
            raise ValueError(f"loss {name!r} depends on nothing that requires grad")
        self._loss_values[Value(recorder.values, value)] = name
        if self.routes is not None:
            self.routes.note(name, norms or {}, self._tensors)
            self.routes.note_carried(name, carried or Carried.nothing(), scale)
        self._escapes.update(recorder.escapes, value)
        found = Trace(recorder.values, value)
        arrived = self._arrived(norms or {}, crossings)
        every = [*(norms or {}).values(), *(n for ns in crossings.values() for n in ns)]
        floor = self._rtol * max([0.0, *filter(math.isfinite, every)])  # beside an overflow, no gradient is zero
        self._reached.update([key for key, norm in (norms or {}).items() if not norm <= floor])
        for part, got in arrived.items():
            bit, norm = self._bit(part), math.sqrt(sum(n * n for n in got))
            path, cuts = self._path(loss, found, part), found.cuts_of(bit)
            if not norm <= floor:  # NaN arrives too
                self._enter(name, part, Cell("open", norm, cuts, path))
                continue
            known = self._cells.get((name, part))
            where = known.died if known is not None else ()
            if not where and died is not None:
                where = died(self.parts.get(part, ()), part.removeprefix("stop."), floor)
            zeros = zero_parameters(self._tensors.values()) if zeros is None else zeros
            factors = self._factors(name, part, value, zeros)
            note = "" if where or factors else suspected(path)
            self._enter(name, part, Cell("zero", norm, cuts, path, note, where, factors))
        note = "" if norms is not None else "a probe would disturb DDP or a hook; use FlowAudit"
        self._enter_unreached(name, found, note, sum(self._bits[part] for part in arrived))

    def _factors(self, name: str, part: str, value: int, zeros: Collection[int]) -> tuple[str, ...]:
        """The parameters among ``zeros`` by which every way from the loss to a part is multiplied, if so."""
        recorder = self._running(name)
        factors = {at: t for key, t in self._tensors.items() if key in zeros and (at := recorder.value(t)) is not None}
        ways = Ways(recorder.values, {name: [value]}, self._bits)
        by = ways.multiplied_by(name, part, {at: t.dim() for at, t in factors.items()}) if factors else ()
        return tuple(self.names[id(factors[at])] for at in sorted(by))

    def _arrived(self, norms: Mapping[int, float], crossings: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The norms that arrived at each column, in the order of the columns."""
        arrived: dict[str, list[float]] = {}
        for key, norm in norms.items():
            for part in self._parts_of.get(key, ()):
                arrived.setdefault(part, []).append(norm)
        arrived |= {f"stop.{name}": list(got) for name, got in crossings.items() if f"stop.{name}" not in self.parts}
        return {part: arrived[part] for part in sorted(arrived, key=self._bit)}

    def _enter_unreached(self, name: str, found: Trace, note: str, arrived: int) -> None:
        """The cells of the parts at which no gradient arrived. What no cell is entered for is independent."""
        opaque = note or self._running("").unseen
        opaque = opaque or ("the loss uses values that were computed before the audit began" if found.foreign else "")
        if opaque:
            hidden = Cell("opaque", note=opaque)
            for part in self._listed(((1 << len(self._columns)) - 1) & ~arrived & ~(0 if note else found.connected)):
                self._enter(name, part, hidden)
        if note:
            return
        blocked: dict[Any, Cell] = {}  # parts that are told the same hold one cell
        for part in self._listed(found.connected & ~arrived):
            cuts = found.cuts_of(self._bits[part])
            key = tuple((cut, cut.op) for cut in cuts)
            self._enter(name, part, blocked.setdefault(key, Cell("blocked", cuts=cuts)))
        escaped = found.escaped | self._escapes.bits
        for part in self._listed(0 if opaque else escaped & ~found.connected & ~arrived):
            bit = self._bits[part]
            self._enter(name, part, Cell("independent", cuts=found.escapes_of(bit) or self._escapes.of(bit)))

    def _listed(self, bits: int) -> Iterator[str]:
        """The columns that these bits stand for."""
        while bits:
            yield self._columns[(bits & -bits).bit_length() - 1]
            bits &= bits - 1

    def _enter(self, name: str, part: str, cell: Cell) -> None:
        known = self._cells.get((name, part))
        self._cells[name, part] = cell if known is None else known.merge(cell)

    def _path(self, loss: Tensor, found: Trace, part: str) -> tuple[str, ...]:
        steps = found.live_path(self._bit(part))
        if steps:
            return steps
        walk = Walk(loss)
        paths = [[*walk.path(t)[:-1], self.names[id(t)]] for t in self.parts.get(part, ()) if id(t) in walk.leaves]
        return tuple(min(paths, key=len, default=[]))

    def matrix(self) -> FlowMatrix:
        """The matrix of all losses reported so far."""
        self.settle()
        return FlowMatrix(self._columns, self._cells, list(dict.fromkeys(self.loss_values.values())), self._facts())

    def _facts(self) -> Facts:
        """What advice rests on."""
        standing = {p for p, tensors in self.parts.items() if not any(t.requires_grad for t in tensors)}
        standing |= {name for name, parts in self._unions.items() if standing.issuperset(parts)}
        values: dict[str, list[int]] = {}
        for value, name in self.loss_values.items():
            values.setdefault(name, []).append(value.index)
        graph = next((value.of for value in self.loss_values), None)
        bits = self._bits | {name: sum(self._bits[p] for p in parts) for name, parts in self._unions.items()}
        ways = None if graph is None else Ways(graph, values, bits)
        return Facts(self._tied, frozenset(standing), ways, self._unions)

    def findings(self) -> list[Finding]:
        """What is wrong with the optimisers: a gradient arrived where none of them steps, or one lists it twice."""
        self.settle()
        if not self._optimizers:
            return []
        model = [p for module in modules_in(self._modules) for p in parameters_of(module)]
        model += [p for part in self.parts.values() for p in part]
        twice = listed_twice(self.names, self._optimizers)
        return twice + unstepped(self.names, self._reached, self._optimizers, model)

    def check(self, contract: FlowContract | Mapping[str, Mapping[str, str]]) -> None:
        """Raise :class:`~stopgrad.GradientLeak` or :class:`~stopgrad.GradientStarved` if the contract is broken."""
        __tracebackhide__ = True
        FlowContract.of(contract).check(self.matrix())

    def _running(self, name: str) -> Recorder:
        __tracebackhide__ = True
        if self._recorder is None:
            raise RuntimeError(f"loss {name!r}: reported outside the audit; call a.loss() inside the with block")
        if self._recorder.thread != threading.get_ident():
            raise RuntimeError(f"loss {name!r}: reported from another thread than the one that began the audit")
        self._recorder.settle()
        return self._recorder

    def settle(self) -> None:
        """Measure the loss that was reported last, if it still waits for its backward."""
        if self._recorder is not None:
            self._recorder.settle()
