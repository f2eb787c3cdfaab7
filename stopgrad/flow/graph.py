"""The autograd graph, walked from a loss to the leaves: cheap, and an upper bound of what a gradient reaches."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from stopgrad.cuts.torch_internals import REENTRANT, has_static_graph, sequence_number

# A node that Python has looked at is freed inside the one before it (PyTorch 2.13, 8 MB of stack): 50,000 such nodes in
# a row end the process. So no more of a graph than this is ever looked at.
MOST_NODES = 10_000


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
        whole: all of them were; else the graph is too large, and what was not found may be there all the same.
        static_ddp: the graph belongs to a DistributedDataParallel with ``static_graph=True``, which counts backwards:
            to measure by ``torch.autograd.grad`` would silently bring its ranks out of step.
    """

    def __init__(self, tensor: Tensor, stop: Collection[Any] = ()) -> None:
        self.leaves: dict[int, Tensor] = {}
        self.opaque: list[str] = []
        self.nodes = 0
        self.whole = True
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
            if len(self._came) > MOST_NODES:
                self.whole = False
                return
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


def ordered(root: Any) -> list[Any]:
    """All nodes behind one, and itself, what lies behind a node before it; [] if there are too many to look at."""
    order: list[Any] = []
    seen, stack = set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in seen]
        if len(seen) > MOST_NODES:
            return []
    return order


# Nodes that hand on what they get, reshaped.
HAND_ON = (
    *("View", "UnsafeView", "ReshapeAlias", "Reshape", "Permute", "Transpose", "T", "Expand", "Squeeze", "Unsqueeze"),
    *("Clone", "Alias", "ToCopy"),
)


def hands_on(node: Any) -> bool:
    return node.name().partition("Backward")[0] in HAND_ON


@dataclass(slots=True)
class Reach:
    """What lies behind a node.

    Attributes:
        found: bits of tensors, as :meth:`Reaches.tensors` tells them.
        depth: at most so many nodes that were looked at lie in a row.
        oldest: the smallest of autograd's numbers of the nodes.
        reentrant, static_ddp: a reentrant checkpoint, or a DDP with ``static_graph=True``, is among the nodes.
    """

    found: int = 0
    depth: int = 0
    oldest: int = sys.maxsize
    reentrant: bool = False
    static_ddp: bool = False


class Reaches:
    """What each of several losses reaches. What they share is walked twice at most: then its answer is noted on it."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._leaves: dict[int, int] = {}  # id of a leaf -> its bit
        self._crossings: dict[int, int] = {}  # autograd's number of a node -> the bit of the tensor that it made
        self._mark = object()
        self._newest = -1  # the number of the last loss's node: what is older may be shared
        self._gave_up = False

    def add_crossing(self, number: int, tensor: Tensor) -> None:
        """A tensor that is no leaf is asked for too; ``number`` is its node's."""
        self._crossings[number] = self._bit(tensor)

    def _bit(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        return 1 << (len(self._tensors) - 1)

    def tensors(self, reach: Reach) -> list[Tensor]:
        """The leaves and crossings that may be reached: an upper bound."""
        found, bits = [], reach.found
        while bits:
            found.append(self._tensors[(bits & -bits).bit_length() - 1])
            bits &= bits - 1
        return found

    def behind(self, tensor: Tensor) -> Reach | None:
        """What a tensor reaches, or None if its graph is too large to look at all of it."""
        node = tensor.grad_fn
        if node is None:
            return Reach(self._leaf(tensor))
        reach = None if self._gave_up else self._walk(node, shared=False)
        self._newest = max(self._newest, sequence_number(node))
        self._gave_up |= reach is None
        return reach

    def _walk(self, root: Any, *, shared: bool) -> Reach | None:
        """Look at every node behind ``root``; ``shared`` says that an earlier loss may have led here too."""
        reach = Reach()
        depth, seen, stack = 0, {root}, [root]
        while stack:
            node = stack.pop()
            number = sequence_number(node)
            if number <= self._newest and (shared or node is not root):
                known = self._noted(node)
                if known is None and not shared:
                    known = self._walk(node, shared=True)
                    if known is None:
                        return None
                    node.metadata["stopgrad"] = self._mark, known
                if known is not None:
                    reach.found |= known.found
                    reach.oldest = min(reach.oldest, known.oldest)
                    reach.reentrant |= known.reentrant
                    reach.static_ddp |= known.static_ddp
                    depth = max(depth, known.depth)
                    continue
            reach.oldest = min(reach.oldest, number)
            if isinstance(node, BackwardCFunction):
                reach.reentrant |= type(node).__name__ == REENTRANT
                reach.static_ddp |= has_static_graph(node)
            reach.found |= self._crossings.get(number, 0)
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    variable = getattr(child, "variable", None)  # only AccumulateGrad has one
                    if variable is None:
                        stack.append(child)
                    else:
                        reach.found |= self._leaf(variable)
            if len(seen) + depth > MOST_NODES:
                return None
        reach.depth = len(seen) + depth
        return reach

    def _noted(self, node: Any) -> Reach | None:
        mark, reach = node.metadata.get("stopgrad", (None, None))
        return reach if mark is self._mark else None

    def _leaf(self, leaf: Tensor) -> int:
        if id(leaf) not in self._leaves:
            self._leaves[id(leaf)] = self._bit(leaf)
        return self._leaves[id(leaf)]


class Nodes:
    """Which value each autograd node of one thread belongs to, known without looking at the nodes: by autograd's count.

    Args:
        began: the count when the audit began.
    """

    def __init__(self, began: int) -> None:
        self._began = began
        self._ends, self._begins, self._values = array("i"), array("i"), array("i")
        self._single: dict[int, int] = {}

    def add(self, begin: int, end: int, value: int) -> None:
        """The nodes from ``begin`` to before ``end`` are of this value. Each call speaks of newer nodes."""
        if end > begin:
            self._ends.append(end - self._began)
            self._begins.append(begin - self._began)
            self._values.append(value)

    def add_node(self, node: Any, value: int) -> None:
        """One node that is looked at."""
        if node is not None:
            self._single[sequence_number(node)] = value

    def value(self, node: Any) -> int | None:
        number = sequence_number(node)
        if number in self._single:
            return self._single[number]
        number -= self._began
        at = bisect_right(self._ends, number)
        return self._values[at] if at < len(self._ends) and self._begins[at] <= number else None

    def is_older(self, node: Any) -> bool:
        """The node was made before the audit began."""
        return sequence_number(node) < self._began
