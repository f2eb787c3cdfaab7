"""The probe of a standalone audit: the gradient of one loss, and where it became zero, without a trace afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from stopgrad.cuts.torch_internals import without_overrides
from stopgrad.flow.graph import Reach, Reaches
from stopgrad.flow.measure import Found, gradients, norms_of
from stopgrad.flow.sites import Recorder
from stopgrad.flow.zeros import died_at


class Probe:
    """Asks for gradients, and leaves everything as it was.

    Args:
        tensors: the parameters of the parts, by ``id``.
        modules: those whose buffers, training modes and random state a checkpoint that runs again may change.
    """

    def __init__(self, recorder: Recorder, tensors: Mapping[int, Tensor], modules: Sequence[nn.Module]) -> None:
        self._recorder, self._tensors = recorder, tensors
        self._found = Found(modules)
        self._reaches = Reaches()
        self._reach: Reach | None = None

    def clear(self) -> None:
        self._reaches.clear()

    def norms(self, name: str, loss: Tensor) -> tuple[dict[int, float], dict[str, list[float]]] | None:
        """The norms of the gradients that arrive: by ``id`` of the parameter, and by boundary. None: cannot be told."""
        with without_overrides():
            for crossing in self._recorder.fresh_probes():
                self._reaches.add_crossing(*crossing)
            self._reach = self._reaches.behind(loss)
            asked = self._asked(self._reach)
        grads = self._gradients(name, loss, asked)
        if grads is None:
            return None
        by_tensor: dict[int, float] = {}
        by_boundary: dict[str, list[float]] = {}
        for tensor, norm in zip(asked, norms_of(grads), strict=True):
            if norm is not None and id(tensor) in self._tensors:
                by_tensor[id(tensor)] = norm
            elif norm is not None:
                by_boundary.setdefault(self._recorder.probes[id(tensor)][0], []).append(norm)
        return by_tensor, by_boundary

    def _asked(self, reach: Reach | None) -> list[Tensor]:
        """The parameters and crossings to ask for a gradient: those that the loss may reach."""
        probes = self._recorder.probes
        if reach is None or reach.reentrant:
            crossings = [tensor for _, tensor in probes.values()]
            return [t for t in self._tensors.values() if t.requires_grad] + crossings
        return [t for t in self._reaches.tensors(reach) if id(t) in self._tensors or id(t) in probes]

    def _gradients(self, name: str, loss: Tensor, asked: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        with without_overrides():
            self._found.note()
            if loss.device.type != "cpu":  # else its operations, if there are any, are seen here
                self._found.copy()
        try:
            with self._recorder.pause(self._found.copy):
                return gradients(name, loss, asked, self._recorder.leaves, self._reach)
        finally:
            self._found.restore()

    def died(self, loss: Tensor, part: Sequence[Tensor], boundary: str, floor: float) -> tuple[str, ...]:
        """The operations, with their lines, at which the gradient of the loss that was probed last became zero.

        Args:
            part: the parameters of a part; or none, and ``boundary`` names the part.
            floor: a gradient is zero that is not larger.
        """
        if self._reach is None or self._reach.reentrant:
            return ()
        asked = self._asked(self._reach)
        wanted = {id(t) for t in part} or {key for key, (name, _) in self._recorder.probes.items() if name == boundary}
        targets = [t for t in asked if id(t) in wanted]
        nodes = died_at(loss, targets, floor, lambda at: self._gradients("", loss, at))
        return tuple(dict.fromkeys(map(self._recorder.describe, nodes)))
