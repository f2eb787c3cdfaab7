"""What each tensor that is alive was computed from: its value, found by the tensor, its memory, or its node."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from stopgrad.cuts.torch_internals import StorageWeakRef, next_number
from stopgrad.flow.frames import user_line
from stopgrad.flow.graph import MOST_NODES, Nodes, hands_on, ordered
from stopgrad.flow.ops import node_name, storage_of
from stopgrad.flow.values import FOREIGN, LIVE, Values

Known = tuple[Tensor, int]  # a tensor, and its value


class _Ref(weakref.ref):
    """A weak reference to a tensor, given its value. Made for every operation: in C, and without a callback."""

    __slots__ = ("index",)
    index: int


class Tensors:
    """The values of tensors.

    Args:
        roots: each leaf tensor to follow, with the bits of the parts that it belongs to and its name.

    Attributes:
        values: the value graph; it stays when all else is forgotten.
        leaves: leaf tensors that were used, require grad and are no part of the model.
        modules: the stack of names of the modules that run now.
        boundaries: the stack of boundaries whose producers run now: name, kind of cut that it makes, line.
        nodes: the values of autograd's nodes.
        writes: by storage, the last in-place write into it.
        roots: the value of each root, by its id.
        alone: no other thread computes, so that autograd's numbers, which each thread counts for itself, name nodes.
    """

    def __init__(self, roots: Mapping[Tensor, tuple[int, str]]) -> None:
        self.values = Values()
        self.leaves: dict[int, Tensor] = {}
        self.modules: list[str] = []
        self.boundaries: list[tuple[str, str, tuple[str, int]]] = []
        self.nodes = Nodes(0)
        self.writes: dict[int, int] = {}
        self._pins: list[StorageWeakRef] = []  # of those storages: none that is gone has its id given to another
        self.alone = True
        self._refs: dict[int, _Ref] = {}  # by id; of one that is gone until another tensor has its id
        self._parameters = {id(tensor): tensor for tensor in roots}
        self.roots = {
            id(root): self.new(name, (), parts=bits, live=True, site=("", 0)) for root, (bits, name) in roots.items()
        }
        self.values.roots = len(self.values)

    def clear(self) -> None:
        for store in (self._refs, self.writes, self._pins, self.leaves, self._parameters, self.roots):
            store.clear()

    def knows(self, tensor: Tensor) -> bool:
        """It has a value already."""
        return self._ref(tensor) is not None or id(tensor) in self.roots

    def _ref(self, tensor: Tensor) -> _Ref | None:
        ref = self._refs.get(id(tensor))
        return ref if ref is not None and ref() is tensor else None

    def value(self, tensor: Tensor) -> int | None:
        """What the tensor was computed from, or None if it depends on no part of the model."""
        key, values = id(tensor), self.values
        ref = self._refs.get(key)
        if ref is not None and ref() is tensor:
            value = ref.index
            if values.modes[value] and not values.flags[value] & LIVE and tensor.grad_fn is not None:
                value = self._from_function(tensor, value)
        elif key in self.roots:
            value = self.roots[key]
            if not tensor.requires_grad:
                value = self.new(values.op(value), (value,), cut="requires_grad")
        else:
            value = self._from_graph(tensor) if tensor.grad_fn is not None else None
            if value is None and tensor.requires_grad:
                self.leaves[key] = tensor
        write = self.writes.get(storage_of(tensor)) if self.writes else None
        if write is not None and (value is None or write > value):
            value = self.new("view", [v for v in (value, write) if v is not None], live=tensor.requires_grad)
        return value

    def wrote(self, tensor: Tensor, value: int) -> None:
        """A write in place made ``value`` of a tensor, and so of every alias of it."""
        key = storage_of(tensor)
        if key < 0:  # it has no storage, so no alias can be told
            return
        if key not in self.writes:
            self._pins.append(StorageWeakRef(tensor.untyped_storage()))
        self.writes[key] = value

    def _from_graph(self, tensor: Tensor) -> int:
        """A live tensor that no operation was seen to make (a custom Function, a wrapper): ask its graph."""
        parents: list[int] = []
        seen: set[Any] = {tensor.grad_fn}
        stack: list[Any] = [tensor.grad_fn]
        while stack and len(seen) < MOST_NODES:
            node = stack.pop()
            variable = getattr(node, "variable", None)
            value = self._of_leaf(variable) if variable is not None else self._of_node(node)
            if value is not None:
                parents.append(value)
            elif variable is None:
                fresh = dict.fromkeys(n for n, _ in node.next_functions if n is not None and n not in seen)
                seen.update(fresh)
                stack += fresh
        foreign = bool(stack) or (self.alone and any(self.nodes.is_older(node) for node in seen))
        if foreign and not stack:
            parents = self._from_nodes(ordered(tensor.grad_fn)) or parents
        value = self.new(node_name(tensor), parents, live=True, foreign=foreign)
        self.attach([(tensor, value)])
        return value

    def _of_node(self, node: Any) -> int | None:
        return self.nodes.value(node) if self.alone else None

    def _of_leaf(self, leaf: Tensor) -> int | None:
        """The value of a leaf: of a parameter, or of what was cut and then made to require grad."""
        ref = self._ref(leaf)
        return self.roots.get(id(leaf)) if ref is None else ref.index

    def _from_nodes(self, order: Sequence[Any]) -> list[int]:
        """The values of nodes that were made before the audit began, each as a value; returns those of the last."""
        made: dict[Any, list[int]] = {}
        for node in order:
            variable = getattr(node, "variable", None)
            known = self._of_leaf(variable) if variable is not None else self._of_node(node)
            parents = [v for child, _ in node.next_functions if child is not None for v in made[child]]
            if known is not None or variable is not None:
                made[node] = [] if known is None else [known]
            elif node is order[-1] or (hands_on(node) and all(v < self.values.roots for v in parents)):
                made[node] = parents  # a parameter, transposed
            else:
                made[node] = [self.new(node.name(), parents, live=True, foreign=True, site=("", 0))] if parents else []
        return made[order[-1]] if order else []

    def _from_function(self, tensor: Tensor, value: int) -> int:
        """A custom Function's output: the operations of its forward ran without a graph, and are no cuts."""
        values = self.values
        parents, seen, stack = [], {value}, [value]
        while stack:
            index = stack.pop()
            for parent in values.parents[values.first[index] : values.first[index + 1]]:
                if parent not in seen:
                    seen.add(parent)
                    inner = values.modes[parent] and not values.flags[parent] & LIVE
                    (stack if inner else parents).append(parent)
        made = self.new(node_name(tensor), parents, live=True, site=values.line(value))
        self.attach([(tensor, made)])
        return made

    def attach(self, made: Iterable[Known], begin: int | None = None) -> None:
        """Give tensors their values. Their nodes are those since ``begin``, or else looked at."""
        live: list[Known] = []
        for tensor, value in made:
            key = id(tensor)
            if key in self.roots:  # a write into a parameter: it stays what it is, and depends on more
                root = self.roots[key]
                self.roots[key] = value = self.new(self.values.op(root), (root, value), live=True)
            else:
                ref = self._refs[key] = _Ref(tensor)
                ref.index = value
            if self.values.flags[value] & LIVE:
                live.append((tensor, value))
        if begin is not None and live and (len(live) == 1 or len({value for _, value in live}) == 1):
            self.nodes.add(begin, next_number(), live[0][1])
        else:
            for tensor, value in live:
                self.nodes.add_node(tensor.grad_fn, value)

    def made(self, tensor: Tensor, op: str, parents: Sequence[int], begin: int) -> None:
        """Give its value to what an operation made alone and live: as :meth:`new` and :meth:`attach`, in less time."""
        module = self.modules[-1] if self.modules else ""
        value = self.values.new(op, parents, user_line(), module=module, flags=LIVE)
        ref = self._refs[id(tensor)] = _Ref(tensor)
        ref.index = value
        self.nodes.add(begin, next_number(), value)

    def new(
        self,
        op: str,
        parents: Sequence[int],
        *,
        parts: int = 0,
        cut: str = "",
        mode: str = "",
        live: bool = False,
        site: tuple[str, int] | None = None,
        boundary: str | None = None,
        foreign: bool = False,
    ) -> int:
        mode = "" if cut or live else mode
        if boundary is None and self.boundaries and (cut or mode):
            for name, kind, line in reversed(self.boundaries):
                if kind == (cut or mode):
                    boundary, site = name, line
                    break
        return self.values.new(
            op,
            parents,
            site or user_line(),
            parts=parts,
            cut=cut,
            mode=mode,
            boundary=boundary,
            module=self.modules[-1] if self.modules else "",
            flags=(LIVE if live else 0) | (FOREIGN if foreign else 0),
        )
