"""A boundary: the named place where a value crosses from a producer to a consumer, and how its gradient is stopped."""

from __future__ import annotations

import contextlib
import copy
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stopgrad.cuts.frozen import call_frozen, held_elsewhere, is_any_held
from stopgrad.cuts.gate import scale_gradient
from stopgrad.cuts.strategies import CALLS_ONLY, TAKES_FACTOR, Strategy, check_stop, flipped, parse_strategy, spelling
from stopgrad.cuts.torch_internals import forward_mode, tree_map, without_tangents
from stopgrad.cuts.watcher import Watcher, watcher

T = TypeVar("T")

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.Size)
# The cut that a call makes inside its producer.
_MAKES = {
    Strategy.NO_GRAD: "no_grad",
    Strategy.INFERENCE_MODE: "inference_mode",
    Strategy.FREEZE: "requires_grad",
}
_LETS_THROUGH = (Strategy.NONE, *TAKES_FACTOR)
_switched: dict[str, str] | None = None  # strategy by name, where boundaries are switched
_met: dict[str, str] = {}


@contextlib.contextmanager
def switched_boundaries(strategies: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Inside, boundaries that are made with these names have these strategies, whatever the program says.

    Yields the strategies of all that were made, by name.
    """
    global _switched, _met
    before, _switched, _met = (_switched, _met), dict(strategies), {}
    try:
        yield _met
    finally:
        _switched, _met = before


class Boundary:
    """A named place where a value crosses from a producer to a consumer, with one strategy to stop its gradient.

    Two forms, both on a line of their own where the loss is assembled::

        fakes = boundary(generator, noise)     # call the producer under the strategy
        hidden = boundary.cross(hidden)        # a value that exists already: a tensor or a pytree of tensors

    Args:
        name: what crosses here, as errors and audits name it.
        strategy: ``none``, ``detach``, ``detach_``, ``data``, ``no_grad``, ``inference_mode``, ``freeze``,
            ``scale:a`` or ``reverse:l``. See :class:`stopgrad.Strategy`.
        offered: what a recipe offers beyond these: ``freeze_params`` crosses as ``freeze``, ``cached`` as ``no_grad``.

    Raises:
        ValueError: the strategy is unknown, or its factor is missing or not finite.
    """

    def __init__(self, name: str, strategy: str = "detach", *, offered: Iterable[str] = ()) -> None:
        self.name = name
        if _switched is not None:
            strategy = _met[name] = _switched.get(name, str(strategy))
        self.spelled = str(strategy)
        self.strategy, self.factor = parse_strategy(strategy, key=f"stop.{name}", offered=offered)
        self._modules: tuple[nn.Module, ...] = ()

    def __repr__(self) -> str:
        return f"Boundary({self.name!r}, {self.spelled!r})"

    def over(self, *modules: nn.Module) -> Boundary:
        """The same boundary with its producers named: ``freeze`` needs them when the producer is a plain function."""
        named = copy.copy(self)
        named._modules = modules
        return named

    def __call__(self, producer: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run ``producer(*args, **kwargs)`` under the strategy and return what crosses.

        ``no_grad`` and ``inference_mode`` never build the producer's graph. ``freeze`` keeps the parameters of the
        producer out of it: gradient still passes through to ``args``, so it stops the flow only where no argument
        carries gradient. Every other strategy builds the graph and cuts, or gates, what comes out. All hold where
        :mod:`torch.utils.checkpoint` runs the producer again, and under ``torch.func``.

        Raises:
            TypeError: ``freeze``, and the producer is a plain function: its parameters are unknown.
            RuntimeError: the strategy lets gradient through, and another thread is in a call that froze the producer.
        """
        if self.strategy not in CALLS_ONLY:
            if is_any_held() and self.strategy in _LETS_THROUGH:
                self._refuse_frozen_elsewhere(producer)
            return self.cross(producer(*args, **kwargs))
        watch = self._watcher()
        with watch.inside(self.name, _MAKES[self.strategy]) if watch else contextlib.nullcontext():
            value = self._run(producer, args, kwargs)
        if watch is None:
            return value
        return tree_map(lambda leaf: self._mark(watch, leaf, (args, kwargs)), value)

    def cross(self, value: T) -> T:
        """Cut, or gate, a value that exists already: a tensor, or a pytree of them (dicts, lists, named tuples).

        Raises:
            ValueError: the strategy works on calls only.
            TypeError: the value holds an object whose tensors cannot be seen, so that a cut would miss them.
            RuntimeError: ``detach_`` on a view (torch refuses it).
        """
        watch = self._watcher()
        if self.strategy is Strategy.NONE:
            return value if watch is None else tree_map(lambda leaf: self._pass(watch, leaf), value)
        if self.strategy in CALLS_ONLY:
            legal = ", ".join(spelling(s.value) for s in Strategy if s not in CALLS_ONLY)
            raise ValueError(
                f"stop.{self.name}={self.spelled}: {self.spelled} works on a call, and this value exists already; "
                f"choose one of {legal}, or call the producer through the boundary"
            )
        return tree_map(lambda leaf: self._stop(watch, leaf), value)

    def _watcher(self) -> Watcher | None:
        """Who watches, told of the choice."""
        watch = watcher()
        if watch is not None:
            watch.strategies[self.name] = self.spelled
        return watch

    def _stop(self, watch: Watcher | None, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if isinstance(leaf, _PLAIN):
                return leaf
            raise TypeError(f"stop.{self.name}={self.spelled}: cannot cut a {type(leaf).__name__}; pass its tensors")
        if watch is None:
            return self._cut(leaf)
        if self.strategy in TAKES_FACTOR:
            return watch.gate(self.name, leaf, self._cut)
        return watch.cut(self.name, self.strategy.value, leaf, self._cut)

    def _cut(self, leaf: Tensor) -> Tensor:
        match self.strategy:
            case Strategy.DETACH:
                return leaf.detach()
            case Strategy.DETACH_:
                return leaf.detach_()
            case Strategy.DATA:
                return leaf.data
            case _:
                differentiable = leaf.is_floating_point() or leaf.is_complex()
                return scale_gradient(leaf, self.factor) if differentiable else leaf

    def _pass(self, watch: Watcher, leaf: Any) -> Any:
        return watch.gate(self.name, leaf, lambda crossing: crossing) if isinstance(leaf, Tensor) else leaf

    def _mark(self, watch: Watcher, leaf: Any, args: Any) -> Any:
        """What crossed a call, seen by an audit."""
        if not isinstance(leaf, Tensor):
            return leaf
        if self.strategy is Strategy.FREEZE:
            return watch.freeze(self.name, leaf, args)
        return watch.cut(self.name, self.strategy.value, leaf, lambda made: made)

    def _run(self, producer: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        match self.strategy:
            case Strategy.NO_GRAD | Strategy.INFERENCE_MODE:
                off = torch.no_grad() if self.strategy is Strategy.NO_GRAD else torch.inference_mode()
                with off, without_tangents() if forward_mode() else contextlib.nullcontext():
                    return producer(*args, **kwargs)
            case _:
                return call_frozen(self._producers(producer), producer, *args, **kwargs)

    def _refuse_frozen_elsewhere(self, producer: Callable[..., Any]) -> None:
        owner = producer.__self__ if isinstance(producer, MethodType) else producer
        for module in self._modules or (owner,):
            if isinstance(module, nn.Module) and held_elsewhere(module):
                raise RuntimeError(
                    f"stop.{self.name}={self.spelled}: another thread has frozen {type(module).__name__} for a call, "
                    "so no gradient would reach it here; let one lock guard both calls"
                )

    def _producers(self, producer: Callable[..., Any]) -> Sequence[nn.Module]:
        owner = producer.__self__ if isinstance(producer, MethodType) else producer
        modules = self._modules or ((owner,) if isinstance(owner, nn.Module) else ())
        if not modules:
            name = getattr(producer, "__name__", type(producer).__name__)
            raise TypeError(
                f"stop.{self.name}=freeze: {name} is no module, so its parameters are unknown; "
                f"name them: boundary.over(module, ...)({name}, ...)"
            )
        return modules


class Stops:
    """A recipe's ``stop:`` section: each boundary as a :class:`Boundary`, each switch as its chosen string.

    ``stop.fakes(generator, noise)`` and ``stop.zero_grad == "late"`` read the same way in every recipe.

    Args:
        chosen: strategy or value by name; what is left out takes the paper's choice, the first declared one.
        boundaries: legal strategies by boundary name.
        switches: legal values by switch name.

    Attributes:
        flipped: the boundaries that stop what the paper's choice passes, or pass what it stops.

    Raises:
        ValueError: an unknown name, or a choice that is not legal.
    """

    def __init__(
        self,
        chosen: Mapping[str, str],
        boundaries: Mapping[str, Sequence[str]],
        switches: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        switches = switches or {}
        check_stop(chosen, boundaries, switches)
        self.boundaries = {
            name: Boundary(name, chosen.get(name, legal[0]), offered=legal) for name, legal in boundaries.items()
        }
        self.switches = {name: str(chosen.get(name, legal[0])) for name, legal in switches.items()}
        self.flipped = flipped(chosen, {name: legal[0] for name, legal in boundaries.items()}, boundaries)

    def __getattr__(self, name: str) -> Any:
        for section in ("boundaries", "switches"):
            if name in self.__dict__.get(section, {}):
                return self.__dict__[section][name]
        raise AttributeError(f"no boundary or switch named {name!r}")

    def __repr__(self) -> str:
        chosen = {name: b.spelled for name, b in self.boundaries.items()} | self.switches
        return f"Stops({', '.join(f'{name}={choice}' for name, choice in chosen.items())})"
