"""Stops switched in memory: chosen as ``train.py:132=none``, and made so as the script's code is compiled."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from stopgrad.cuts.boundary import switched_boundaries
from stopgrad.cuts.strategies import nearest, parse_strategy, spelling
from stopgrad.rewrite import acts
from stopgrad.rewrite.acts import Switch
from stopgrad.rewrite.source import Rewrite, call, is_users
from stopgrad.rewrite.stops import CONTEXTS, LEGAL, VALUES, Position, Stop, position_of, stops_of


class Switches:
    """Which stops of a script are done otherwise than they stand.

    Args:
        chosen: strategy by stop.
        boundaries: strategy by a boundary's name.
        all_noted: stops that are not switched note as well whether they ran.

    Attributes:
        made: of each stop that was compiled in, its switch.
    """

    def __init__(self, chosen: Mapping[Stop, str], boundaries: Mapping[str, str], all_noted: bool = False) -> None:
        self.chosen, self.boundaries, self.all_noted = dict(chosen), dict(boundaries), all_noted
        self.made: dict[Stop, Switch] = {}
        self._met: set[str] = set()

    def rewrite(self, tree: ast.Module, file: str) -> ast.Module | None:
        """The tree with its chosen stops switched; None where it has none."""
        here = [stop for stop in self.chosen if stop.file == file]
        if self.all_noted:
            here = [*stops_of(file)]
        if not here:
            return None
        wanted = {(stop.position, stop.kind): stop for stop in here}
        _Switching(wanted, self._register).visit(tree)
        return tree

    def _register(self, stop: Stop) -> str:
        switch = self.made[stop] = Switch(stop, self.chosen.get(stop, stop.legal[0]))
        return acts.register(switch)

    @contextmanager
    def on(self) -> Iterator[Rewrite | None]:
        """Inside, boundaries are switched; the rewrite of what is compiled. After it, all is as it stands."""
        with switched_boundaries(self.boundaries) as self._met:
            try:
                yield self.rewrite if self.chosen or self.all_noted else None
            finally:
                for switch in self.made.values():
                    switch.strategy, switch.boundary = switch.stop.legal[0], None

    def notes(self) -> list[str]:
        """What was chosen and did not come into play."""
        idle = [stop for stop in self.chosen if not (stop in self.made and self.made[stop].ran)]
        missing = [name for name in self.boundaries if name not in self._met]
        told = [f"{name}={self.boundaries[name]}: no boundary of this name was made" for name in missing]
        return [f"{stop.name}={self.chosen[stop]}: that line never ran" for stop in idle] + told


class _Switching(ast.NodeTransformer):
    """Puts acts in the place of stops."""

    def __init__(self, wanted: dict[tuple[Position, str], Stop], register: Callable[[Stop], str]) -> None:
        self._wanted, self._register = wanted, register

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.expr | ast.stmt):
            stop = next((s for kind in LEGAL if (s := self._wanted.get((position_of(node), kind)))), None)
            made = None if stop is None else _act(node, stop, lambda: ast.Constant(self._register(stop)))
            if stop is not None and made is not None:
                del self._wanted[stop.position, stop.kind]  # a node that the act was given is not made over again
                return self.generic_visit(made)
        return self.generic_visit(node)


def _act(node: ast.expr | ast.stmt, stop: Stop, key: Callable[[], ast.Constant]) -> ast.AST | None:
    """The act in the place of a stop's node; None where the node is not the stop's own."""
    kind = stop.kind
    match node:
        case ast.Call(func=ast.Attribute(value=of, attr=name), args=args) if name == kind and kind in VALUES:
            return _crossing(node, args[0] if args else of, key())
        case ast.Attribute(value=of, attr="data") if kind == "data":
            return _crossing(node, of, key())
        case ast.Call(func=function, args=args, keywords=keywords) if kind in CONTEXTS:
            return call("context", node, key(), function, *args, keywords=keywords)
        case ast.Attribute() if kind in CONTEXTS:
            return call("context_type", node, key(), node)
        case ast.Call(func=function, args=args, keywords=keywords) if kind == "set_grad_enabled":
            return call("enabled", node, key(), function, *args, keywords=keywords)
        case ast.Call(func=ast.Attribute(value=of), args=args, keywords=keywords) if kind == "requires_grad_":
            return call("require", node, key(), of, *args, keywords=keywords)
        case ast.Assign(targets=[ast.Attribute(value=of)], value=value) if kind == "requires_grad":
            attribute = ast.keyword("attribute", ast.Constant(True))
            return ast.copy_location(ast.Expr(call("require", node, key(), of, value, keywords=[attribute])), node)
        case ast.Call(func=ast.Attribute(value=of), args=args, keywords=keywords) if kind == "zero_grad":
            return call("clear", node, key(), of, *args, keywords=keywords)
        case ast.Call(func=function, args=args, keywords=keywords) if kind == "autograd.grad":
            return call("ask", node, key(), function, *args, keywords=keywords)
    return None


def _crossing(node: ast.expr, of: ast.expr, key: ast.expr) -> ast.Call:
    if isinstance(of, ast.Call):
        return call("produce", node, key, of.func, *of.args, keywords=of.keywords)
    return call("cross", node, key, of)


# ---- as a person writes them


def chosen(texts: Sequence[str], script: str, flag: str = "--stop") -> Switches:
    """Read ``train.py:132=none``, ``132=none``, ``132:fake=scale:0.5``, or a boundary's ``NAME=STRATEGY``.

    Raises:
        ValueError: no such file, a line without a stop, several where one is meant, an illegal strategy; one line.
    """
    stops: dict[Stop, str] = {}
    boundaries: dict[str, str] = {}
    for text in texts:
        place, equals, strategy = text.partition("=")
        if not equals or not place or not strategy:
            raise ValueError(f"{flag} {text}: write LINE=STRATEGY, FILE:LINE=STRATEGY or BOUNDARY=STRATEGY")
        file, line, rest = _split(place, script)
        if line is None:
            parse_strategy(strategy, key=f"{flag} {place}")
            boundaries[place.removeprefix("stop.")] = strategy
        else:
            stop = _find(file, line, rest, text, flag)
            _check(stop, strategy, text, flag)
            stops[stop] = strategy
    return Switches(stops, boundaries)


def _split(place: str, script: str) -> tuple[str, int | None, str]:
    """(file, line, the rest of the id) of a place; the line is None for a boundary's name."""
    head, _, rest = place.partition(":")
    if _number(head) is not None:
        return script, _number(head), rest
    line, _, rest = rest.partition(":")
    return head, _number(line), rest


def _number(text: str) -> int | None:
    digits = text.partition("#")[0]
    return int(digits) if digits.isdigit() else None


def _find(file: str, line: int, value: str, text: str, flag: str) -> Stop:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{flag} {text}: {file}: no such file")
    if not is_users(str(path)):
        raise ValueError(f"{flag} {text}: {file}: installed code is left as it is")
    try:
        stops = stops_of(os.path.abspath(path))
    except SyntaxError as error:
        raise ValueError(f"{flag} {text}: {file}: {error.msg}, line {error.lineno}") from None
    here = [stop for stop in stops if stop.line == line]
    found = [stop for stop in here if value in ("", stop.id.partition(":")[2], stop.value)]
    if len(found) == 1:
        return found[0]
    if here:
        raise ValueError(f"{flag} {text}: line {line} has {_listed(here)}; choose one of them")
    if not stops:
        raise ValueError(f"{flag} {text}: {file} has no stop")
    near = min(stops, key=lambda stop: abs(stop.line - line))
    raise ValueError(f"{flag} {text}: line {line} has no stop; the nearest is {near.id} ({near.kind} of {near.value})")


def _listed(stops: Sequence[Stop]) -> str:
    return ", ".join(f"{stop.id} ({stop.kind})" for stop in stops)


def _check(stop: Stop, strategy: str, text: str, flag: str) -> None:
    legal = stop.legal
    if strategy.partition(":")[0] not in legal:
        raise ValueError(
            f"{flag} {text}: this {stop.kind} can be {', '.join(map(spelling, legal))}{nearest(strategy, legal)}"
        )
    if stop.kind in VALUES:
        parse_strategy(strategy, key=f"{flag} {text.partition('=')[0]}")
