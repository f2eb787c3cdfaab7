"""The watch over a script: the books of its first cycles, and the matrix of a few of them."""

from __future__ import annotations

import os
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stopgrad.cuts.torch_internals import gradient_hooks, sequence_number
from stopgrad.cuts.watcher import watcher, yield_by
from stopgrad.flow.graph import Walk
from stopgrad.watch.evidence import Evidence
from stopgrad.watch.graphs import Line, nodes_of
from stopgrad.watch.ledger import Known, held
from stopgrad.watch.merge import joined, renamed
from stopgrad.watch.moves import equal, sample, still_rows
from stopgrad.watch.names import assigned_name, kept_in_frames, loss_name, standing_values, user_frames, variable_of
from stopgrad.watch.options import Options
from stopgrad.watch.seen import Seen
from stopgrad.watch.span import Span

TOGETHER = 3  # cycles that one span may follow
MOST_PHASES = 10  # of a script, that are looked at like its beginning


class Watch(Seen):
    """Listens to a script that trains (see :func:`stopgrad.watch.hooks.overhear`).

    A cycle goes from a clearing of gradients to the last step before the same gradients are cleared again. The matrix
    is measured on the first ``cycles`` of them and then on every ``every``-th, by hooks in the script's own backwards.

    Args:
        cycles: how many cycles from the first are measured.
        every: and then every so many; 0 for none.
        books: so many cycles are written down in full; afterwards, those that are measured.
        options: what else is asked for.
    """

    def __init__(self, cycles: int = 3, every: int = 100, books: int = 30, options: Options | None = None) -> None:
        super().__init__(books, options or Options())
        self.cycles, self.every = cycles, every
        self._first = cycles, books
        self.quiet = not (self._written() or self._followed())
        self._pace: Known | None = None  # the optimiser by whose steps quiet cycles are counted
        self._cleared: set[int] = set()
        self._known: dict[int, Known] = {}  # by id of an optimiser that has stepped
        self._stepped = False
        self.has_compiled = False
        self._is_first = True
        self._began = 0  # the cycle in which the span began
        self._more = MOST_PHASES
        self._span: Span | None = None
        self._looked: set[Line] = set()
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._numbers: frozenset[int] = frozenset()  # of the nodes of the newest loss
        self._at: tuple[str, Line] = "", ("", 0)  # its name and line
        self._still: dict[str, tuple[bool, set[int]]] = {}
        self._last_node = -1  # autograd's number of the last loss before the last step

    # ---- what is overheard

    def made(self, optimizer: Optimizer) -> None:
        self.ledger.meet(optimizer, assigned_name(), _line())
        self._look()
        if self.cycle:
            self._new_phase()
        if self._followed():
            self._begin()
            self._is_first = True

    def before_clear(self, owner: Optimizer | nn.Module) -> None:
        if self._stepped and id(owner) in self._cleared:
            self._next_cycle()
        self._cleared.add(id(owner))

    def after_clear(self, owner: Optimizer | nn.Module) -> None:
        if self._written():
            self.ledger.settle()

    def before_backward(self, tensors: Any, retains: bool) -> None:
        name, file, line = loss_name()
        if self._written() and self.ledger.before_backward(name, file, line) and self._stepped:
            self._next_cycle()  # the gradients were cleared by hand
        if self.ledger.number in (2, 4, 8, 16):
            self.kept.append(kept_in_frames())
        loss = _scalar(tensors)
        if self._span is not None and loss is not None and self._measured():
            if (file, line) not in self._looked:
                self._looked.add((file, line))
                self._look()
            nodes = self._span.begin(name, loss)
            self._numbers = self.graphs.backward(name, (file, line), nodes, retains)
            self._at = name, (file, line)
            self._still = self._standing_parameters()

    def after_backward(self, tensors: Any, finished: bool = True) -> None:
        loss = _scalar(tensors)
        self._end_backward(loss, finished)
        if not self._written():
            return
        self.ledger.after_backward(loss is not None and loss.is_leaf, finished)
        if self.ledger.number <= 2:
            self.name()
        if self._span is None and self.ledger.number == 1 and self._measured():  # nothing was made or called before
            self._look()
            self._begin()

    def _end_backward(self, loss: Tensor | None, finished: bool) -> None:
        if self._span is not None and loss is not None:
            self._span.end(loss, finished)
            self._note_standing(self._span.met)
            if self._span.is_full:
                self._end()

    def before_grad(self, outputs: Any, inputs: Any) -> None:
        output, asked = _scalar(outputs), [inputs] if isinstance(inputs, Tensor) else list(inputs)
        holders = self.ledger.holders()
        keys = {id(p): self.ledger.key(p) for p in asked if isinstance(p, Tensor)}
        known = [
            p for p in asked if keys.get(id(p)) is not None and (isinstance(p, nn.Parameter) or keys[id(p)] in holders)
        ]
        name, file, line = loss_name()
        if known and self._written():
            self.ledger.asked(name, file, line, known)
        if self._span is not None and output is not None and self._measured():
            self.graphs.used(self._span.begin(name, output) if known else nodes_of(output))

    def after_grad(self, outputs: Any, finished: bool) -> None:
        self._end_backward(_scalar(outputs), finished)

    def counted(self, optimizer: Optimizer) -> bool:
        """A step in a quiet cycle, in as little time as can be; False where there is more to do than to count it."""
        known = self._known.get(id(optimizer))
        if known is None or not known.total & 15:  # now and then it is looked at whether it has grown
            return False
        if known is self._pace:
            if self.every and (self.cycle + 2) % self.every == 0:
                return False
            self.cycle += 1
        known.total += 1
        return True

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        self._stepped = True
        known = self._known.get(id(optimizer))
        if known is None or known.optimizer() is not optimizer:
            known = self._known[id(optimizer)] = self.ledger.optimizers[self.ledger.meet(optimizer)]
            known.name = known.name or variable_of(optimizer)
        known.total += 1
        if self.quiet and known is self._pace:
            self._next_quiet_cycle()
        self._pace = self._pace or known
        if known.has_grown(optimizer) or (known.total == 1 and self.cycle > 0):
            self._new_phase()
        if not self.quiet:
            self.ranks.at(self.ledger.steps, self.ledger.parameters().values())
            if not closure:
                self.ledger.step(optimizer, _line())
            self._before_move(self.ledger.meet(optimizer), optimizer)

    def after_step(self, optimizer: Optimizer, closure: bool) -> None:
        if self._written():
            if closure:
                self.ledger.step(optimizer, _line())
            self._after_move(self.ledger.meet(optimizer))

    def called(self, module: nn.Module, args: Any) -> None:
        self.calls.called(module, args)
        if self._is_first and torch.is_grad_enabled():  # by now all of the networks are there
            self._is_first = False
            if self.ledger.number == 0 and self._measured():
                self._look()
                self._begin(only_if_new=True)

    def set_mode(self, module: nn.Module, training: bool) -> None:
        self.calls.set_mode(module, training)

    def froze(self, module: nn.Module, requires_grad: bool) -> None:
        self.calls.froze(module, requires_grad)

    def clipped(self, parameters: list[Any]) -> None:
        """A gradient's norm is clipped over these."""
        if self._written():
            keys = [key for p in parameters if (key := self.ledger.key(p)) is not None]
            self.name()
            self.clips[_line(), tuple(dict.fromkeys(self.home[key] for key in keys))] = None

    def compiles(self) -> None:
        """To follow values, a compiled function would have to run eagerly, with other last bits."""
        self._end()
        self.has_compiled = True
        self.note("the script compiles: no cycle is measured, since that would change its last bits")

    def failed(self, error: Exception) -> None:
        """The watch itself has failed: the script goes on without it."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        self.note(
            f"the watch failed in cycle {self.cycle + 1} ({type(error).__name__}: {error}, {at}), and saw no more"
        )
        self.cycles = self.books = self.every = 0
        self.quiet = True
        self.abandon()

    def close(self, ended: bool = True) -> None:
        """The script has ended, by itself or not."""
        self.ended = ended
        try:
            self.name()
            if self._written():
                self.ledger.settle()
            self._end()
            self.ranks.compare()
        except Exception as error:  # of whatever kind: what was seen before is told
            self.failed(error)
        self._used = {parameter for _, parameter, _, _ in self.ledger.uses}

    def abandon(self) -> None:
        """In a child that was forked: nothing is followed any more."""
        span, self._span = self._span, None
        if span is not None:
            span.off()

    # ---- what is looked at

    def _look(self) -> None:
        """Note the modules of the frames that run now, their parameters and the statistics of their norms."""
        self.parts.look()
        for tensor in self.parts.tensors():
            self.moves.note(tensor)
        self.ledger.know(self.parts.parameters())

    def _standing_parameters(self) -> dict[str, tuple[bool, set[int]]]:
        """The variables whose name says that they stand still: whether they are states, and what they hang on.

        A state may have a gradient, but not one that goes back across a step.
        """
        found = {}
        for name, tensor, is_state in standing_values():
            number = sequence_number(tensor.grad_fn)
            if number in self._numbers and not (is_state and number > self._last_node):
                keys = {key for p in Walk(tensor).leaves.values() if (key := self.ledger.key(p)) is not None}
                found[name] = is_state, keys
        return found

    def _note_standing(self, met: set[str]) -> None:
        loss, line = self._at
        for name, (is_state, keys) in self._still.items():
            if is_state or name in met:
                self.standing.setdefault((loss, name), (line, set()))[1].update(keys)
        self._still = {}

    def _before_move(self, key: int, optimizer: Optimizer) -> None:
        """Sample what is to stand still in this step."""
        self._last_node = max(self._last_node, *(max(g, default=-1) for g in self.graphs.last(2)), -1)
        self._before.clear()
        own_hooks = int(self._span is not None)
        for p in held(optimizer):
            number = self.ledger.key(p)
            if number is None:
                continue
            if p.grad is None or not p.requires_grad:
                values = sample(p)
                if values is not None:
                    self._before[number] = values, None
                    self.moves.steps[number, key] += 1
            elif len(gradient_hooks(p) or ()) > own_hooks and (rows := still_rows(p)) is not None:
                self._before[number] = p.detach()[rows].clone(), rows
                self.moves.steps[number, key] += 1

    def _after_move(self, key: int) -> None:
        alive = self.ledger.parameters()
        for number, (values, rows) in self._before.items():
            p = alive.get(number)
            if p is None:
                continue
            now = sample(p) if rows is None else p.detach()[rows]
            if now is not None and not equal(values, now):
                (self.moves.still if rows is None else self.moves.rows)[number, key] += 1
        self._before.clear()

    # ---- cycles and spans

    def _new_phase(self) -> None:
        """Another optimiser was made, or one holds more: the next cycles are looked at like the first ones."""
        if self._more:
            self._more -= 1
            self.cycles = max(self.cycles, self.cycle + 1 + self._first[0])
            self.books = max(self.books, self.cycle + 1 + self._first[1])
            self._wake()

    def _written(self) -> bool:
        return self.cycle < self.books or self._measured()

    def _measured(self) -> bool:
        return self.cycle < self.cycles or bool(self.every and self.cycle % self.every == 0)

    def _followed(self) -> bool:
        """Values are followed from the cycle before on: a forward may come before the clearing of gradients."""
        return self._measured() or bool(self.every and (self.cycle + 1) % self.every == 0)

    def _next_cycle(self) -> None:
        if self._written() and not self.cycle & (self.cycle + 1):  # cycles 0, 1, 3, 7, 15, ...
            self.name()
        self.cycle += 1
        self.quiet = not (self._written() or self._followed())
        self._cleared.clear()
        self._stepped = False
        if not self._followed():
            self._end()
        elif self._span is None or self.cycle - self._began >= TOGETHER:
            self._begin()

    def _next_quiet_cycle(self) -> None:
        """Most cycles of a long run: they are counted by the steps of one optimiser."""
        self.cycle += 1
        if self._followed():
            self._wake()
            self._begin()

    def _wake(self) -> None:
        if self.quiet:
            self.quiet = False
            self._cleared.clear()
            self.ledger.forget()

    def _begin(self, only_if_new: bool = False) -> None:
        """Follow values from here on; or go on, where no part has come since the last beginning."""
        parts = self.parts.of(self.ledger.parameters().values(), self.ledger.groups(), self.options.depth)
        if only_if_new and self._span is not None and parts.keys() == self._span.parts.keys():
            return
        self._end()
        self._began = self.cycle
        is_live = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if parts and is_live and watcher() is None and not self.has_compiled:
            self._span = Span(parts, self.options.terms)
            yield_by(self._end)  # to an audit of the script's own

    def _end(self) -> None:
        if self._span is None:
            return
        span, self._span = self._span, None
        seen = span.close()
        self.name()
        homes = {part: {self.home.get(self.key(t), part) for t in tensors} for part, tensors in span.parts.items()}
        names = {part: home.pop() for part, home in homes.items() if len(home) == 1}
        self.changed.update(dict.fromkeys(span.changed))
        self.terms.update(span.terms)
        numbers = {id(p): key for key, p in self.ledger.parameters().items()}
        for loss, found in span.evidence.items():
            found = found.renamed(names)
            found.stopped = {numbers[key]: cut for key, cut in found.stopped.items() if key in numbers}
            self.evidence.setdefault(loss, Evidence()).merge(found)
        if seen is not None and seen.losses:
            self._matrix = joined(self._matrix, renamed(seen, names))


def _scalar(tensors: Any) -> Tensor | None:
    """The one loss of a backward; of several, none."""
    if isinstance(tensors, Tensor):
        return tensors
    tensors = list(tensors) if isinstance(tensors, list | tuple) else []
    return tensors[0] if len(tensors) == 1 and isinstance(tensors[0], Tensor) else None


def _line() -> Line:
    frame = next(user_frames(), None)
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
