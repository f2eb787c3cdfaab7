"""The probe of a standalone audit: the gradient of one loss, and where it became zero, without a trace afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from stopgrad.cuts.torch_internals import post_accumulate_hooks, sees_backward, top_mode, without_overrides
from stopgrad.flow.carried import Carried
from stopgrad.flow.graph import Reach, Reaches
from stopgrad.flow.measure import Found, gradients, norms_of
from stopgrad.flow.own import Awaited, OwnBackward
from stopgrad.flow.sites import Recorder

Norms = tuple[dict[int, float], dict[str, list[float]]]  # by id of the parameter, and by boundary


class Probe:
    """Asks for gradients, and leaves everything as it was.

    Args:
        tensors: the parameters of the parts, by ``id``.
        modules: those whose buffers, training modes and random state a checkpoint that runs again may change.
    """

    def __init__(self, recorder: Recorder, tensors: Mapping[int, Tensor], modules: Sequence[nn.Module]) -> None:
        self._recorder, self._tensors = recorder, tensors
        self._modules = modules
        self._reaches = Reaches()
        self._reach: Reach | None = None
        self._asked: list[Tensor] = []
        self._noted: OwnBackward | None = None

    @cached_property
    def _found(self) -> Found:
        return Found(self._modules)

    def measure(self, name: str, loss: Tensor, carry: Callable[[Tensor], Carried], record: Callable[..., None]) -> None:
        """Measure a loss: in its own backward if that may be awaited, else now.

        Args:
            carry: a context inside which the backward runs that is measured.
            record: takes what was found.
        """
        self._look(loss)
        now = partial(self._measure, name, loss, carry, record)
        with without_overrides():
            may_wait = self._may_wait(loss)
        if may_wait:
            own = partial(self._measure_in, name, loss, carry, record)
            self._recorder.awaited = Awaited(loss, now, own, partial(self._unseen, loss))
        else:
            now()

    def _measure(self, name: str, loss: Tensor, carry: Any, record: Any) -> None:
        with carry(loss) as carried:
            norms = self._norms(name, loss)
        record(name, loss, *(norms or (None, {})), died=partial(self._died, loss, None), carried=carried)
        self._noted = None

    def _measure_in(
        self, name: str, loss: Tensor, carry: Any, record: Any, run: Callable[[], Any]
    ) -> tuple[Any, Callable[[], None]]:
        with carry(loss) as carried, OwnBackward(loss, self._asked) as own:
            result = run()
        found = {"died": partial(self._died, loss, own), "carried": carried}
        return result, lambda: record(name, loss, *self._sorted(own.norms()), **found)

    def _unseen(self, loss: Tensor) -> None:
        """A backward that no function mode saw is about to go through the graph, and may free it."""
        recorder, awaited = self._recorder, self._recorder.awaited
        if awaited is None or recorder.thread == threading.get_ident():
            recorder.settle()
        else:
            awaited.measure_elsewhere(lambda: self._gradients("", loss, self._asked))

    def norms(self, name: str, loss: Tensor) -> Norms | None:
        """The norms of the gradients that arrive: by ``id`` of the parameter, and by boundary. None: cannot be told."""
        self._look(loss)
        return self._norms(name, loss)

    def _norms(self, name: str, loss: Tensor) -> Norms | None:
        grads = self._gradients(name, loss, self._asked)
        return None if grads is None else self._sorted(norms_of(grads))

    def _look(self, loss: Tensor) -> None:
        """See what the loss may reach: it is the one that is measured next."""
        with without_overrides():
            for crossing in self._recorder.fresh_probes():
                self._reaches.add_crossing(*crossing)
            self._reach = self._reaches.behind(loss)
            self._asked = self._may_reach(self._reach)
            self._noted = None

    def _may_wait(self, loss: Tensor) -> bool:
        """The loss's own backward would find what a probe finds now: it is the first one to go through this graph, and
        nothing is known by which it would go another way."""
        reach, recorder = self._reach, self._recorder
        if reach is None or reach.reentrant or not self._asked or not sees_backward or recorder.unseen:
            return False
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed or torch.is_autocast_enabled(loss.device.type) or reach.oldest < recorder.newest_backward:
            return False
        return not any(t.is_leaf and post_accumulate_hooks(t) for t in self._asked)

    def _sorted(self, norms: Sequence[float | None]) -> Norms:
        by_tensor: dict[int, float] = {}
        by_boundary: dict[str, list[float]] = {}
        for tensor, norm in zip(self._asked, norms, strict=True):
            if norm is not None and id(tensor) in self._tensors:
                by_tensor[id(tensor)] = norm
            elif norm is not None:
                by_boundary.setdefault(self._recorder.probes[id(tensor)][0], []).append(norm)
        return by_tensor, by_boundary

    def _may_reach(self, reach: Reach | None) -> list[Tensor]:
        """The parameters and crossings to ask for a gradient: those that the loss may reach."""
        probes = self._recorder.probes
        if reach is None or reach.reentrant:
            crossings = [tensor for _, tensor in probes.values()]
            return [t for t in self._tensors.values() if t.requires_grad] + crossings
        return [t for t in self._reaches.tensors(reach) if id(t) in self._tensors or id(t) in probes]

    def _gradients(self, name: str, loss: Tensor, asked: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        here = self._recorder.thread == threading.get_ident()
        with without_overrides():
            self._found.note()
            if top_mode() is not self._recorder or loss.device.type != "cpu":  # else its operations are seen here
                self._found.copy()
        try:
            with self._recorder.pause(self._found.copy) if here else nullcontext():
                return gradients(name, loss, asked, self._recorder.leaves, self._reach)
        finally:
            self._found.restore()

    def _died(
        self, loss: Tensor, own: OwnBackward | None, part: Sequence[Tensor], boundary: str, floor: float
    ) -> tuple[str, ...]:
        """The operations, with their lines, at which the gradient of the loss that was measured last became zero.

        Args:
            own: its own backward, if that was measured.
            part: the parameters of a part; or none, and ``boundary`` names the part.
            floor: a gradient is zero that is not larger.
        """
        if self._reach is None or self._reach.reentrant:
            return ()
        wanted = {id(t) for t in part} or {key for key, (name, _) in self._recorder.probes.items() if name == boundary}
        targets = [t for t in self._asked if id(t) in wanted]
        return tuple(dict.fromkeys(map(self._recorder.describe, (own or self._again(loss)).died(targets, floor))))

    def _again(self, loss: Tensor) -> OwnBackward:
        """One more probe, which notes what each node passes on: of a loss that has zeros, once for all of them."""
        if self._noted is None:
            with OwnBackward(loss, self._asked) as self._noted:
                self._gradients("", loss, self._asked)
        return self._noted
