"""The autograd graph, walked from a loss to the leaves: cheap, and an upper bound of what a gradient reaches."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from stopgrad.cuts.torch_internals import has_static_graph


class Walk:
    """What an iterative walk from a tensor's ``grad_fn`` found.

    A leaf that is missing is not reached, unless ``opaque`` names a node that hides its inputs; a leaf that is there
    is only an upper bound (a custom Function may return None, a compiled graph is linked to every parameter).

    Args:
        tensor: where to start, a loss as a rule.
        stop: nodes that are not walked through.

    Attributes:
        leaves: ``id`` of each leaf tensor reached -> the leaf.
        opaque: names of the nodes that cannot be seen through: custom Functions, and with them compiled graphs,
            reentrant checkpoints and DDP's sink.
        nodes: how many nodes were visited.
        static_ddp: the graph belongs to a DistributedDataParallel with ``static_graph=True``, which counts backwards:
            to measure by ``torch.autograd.grad`` would silently bring its ranks out of step.
    """

    def __init__(self, tensor: Tensor, stop: Collection[Any] = ()) -> None:
        self.leaves: dict[int, Tensor] = {}
        self.opaque: list[str] = []
        self.nodes = 0
        self.static_ddp = False
        self._came: dict[Any, Any] = {}
        self._accumulators: dict[int, Any] = {}
        if tensor.grad_fn is None:
            if tensor.requires_grad:
                self.leaves[id(tensor)] = tensor
            return
        for node in self._visit(tensor.grad_fn, stop):
            self.nodes += 1
            if isinstance(node, BackwardCFunction):
                self.opaque.append(type(node).__name__)
                self.static_ddp |= has_static_graph(node)
            elif (variable := getattr(node, "variable", None)) is not None:  # only AccumulateGrad has one
                self.leaves[id(variable)] = variable
                self._accumulators[id(variable)] = node

    def _visit(self, root: Any, stop: Collection[Any]) -> Iterator[Any]:
        self._came[root] = None
        queue = deque([root])
        while queue:
            node = queue.popleft()
            yield node
            for child, _ in node.next_functions:
                if child is not None and child not in self._came and child not in stop:
                    self._came[child] = node
                    queue.append(child)

    def path(self, leaf: Tensor) -> list[str]:
        """The names of the nodes on the shortest path from the start to a leaf; [] if it was not reached."""
        names, node = [], self._accumulators.get(id(leaf))
        while node is not None:
            names.append(node.name())
            node = self._came[node]
        return names[::-1]
