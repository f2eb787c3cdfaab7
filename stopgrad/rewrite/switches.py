"""Stops switched in memory: chosen as ``train.py:132=none``, and made so as the script's code is compiled."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from stopgrad.cuts.boundary import switched_boundaries
from stopgrad.cuts.strategies import nearest, parse_strategy, spelling
from stopgrad.rewrite import acts
from stopgrad.rewrite.acts import Switch
from stopgrad.rewrite.source import Rewrite, call, is_users
from stopgrad.rewrite.stops import CALLS, CONTEXTS, LEGAL, VALUES, Position, Stop, position_of, stops_of


class Switches:
    """Which stops of a script are done otherwise than they stand.

    Args:
        chosen: strategy by stop.
        boundaries: strategy by a boundary's name.
        all_noted: stops that are not switched note as well whether they ran.

    Attributes:
        eager: what the script compiles runs eagerly even if no stop is switched.
        made: of each stop that was compiled in, its switch.
        met: strategy by name of the boundaries that were made.
    """

    def __init__(self, chosen: Mapping[Stop, str], boundaries: Mapping[str, str], all_noted: bool = False) -> None:
        self.chosen, self.boundaries, self.all_noted = dict(chosen), dict(boundaries), all_noted
        self._home = os.getcwd()  # a script may go elsewhere
        self.made: dict[Stop, Switch] = {}
        self._keys: dict[Stop, int] = {}
        self.met: dict[str, str] = {}
        self.eager = False
        self._has_compiled = False

    def rewrite(self, tree: ast.Module, file: str) -> ast.Module | None:
        """The tree with its chosen stops switched; None where it has none."""
        here = [stop for stop in self.chosen if stop.file == file]
        if self.all_noted:
            here = [*stops_of(file, self._home)]
        if not here:
            return None
        return self.switch(tree, here)

    def switch(self, tree: ast.Module, stops: Sequence[Stop]) -> ast.Module:
        """The tree with acts in the place of these stops of it."""
        wanted = {(stop.position, stop.kind): stop for stop in stops}
        _Switching(wanted, self._register).visit(tree)
        return tree

    def _register(self, stop: Stop) -> tuple[int, str]:
        """The key of the stop's switch, which is one however often its file is compiled; and its strategy."""
        if stop not in self.made:
            self.made[stop] = Switch(stop, self.chosen.get(stop, stop.legal[0]))
            self._keys[stop] = acts.register(self.made[stop])
        return self._keys[stop], self.made[stop].strategy

    @contextmanager
    def on(self) -> Iterator[Rewrite | None]:
        """Inside, boundaries are switched; the rewrite of what is compiled. After it, all is as it stands."""
        rewrites = bool(self.chosen or self.all_noted)
        eagerly = self._eagerly() if rewrites or self.eager else nullcontext()
        with switched_boundaries(self.boundaries) as self.met, eagerly:
            try:
                yield self.rewrite if rewrites else None
            finally:
                for switch in self.made.values():
                    switch.undo()

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        """Inside, what is compiled runs eagerly: a compiled region would hide its stops."""
        kept = [(owner, owner.compile) for owner in (torch, torch.nn.Module)]

        def eagerly(compile: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(compile)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                self._has_compiled = True
                result = compile(*args, **kwargs)
                torch.compiler.set_stance("force_eager")  # by now an audit that had a stance of its own has ended
                return result

            return wrapper

        for owner, compile in kept:
            owner.compile = eagerly(compile)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            for owner, compile in kept:
                owner.compile = compile  # pyright: ignore[reportAttributeAccessIssue]
            if self._has_compiled:
                torch.compiler.set_stance("default")

    def notes(self) -> list[str]:
        """What was chosen and did not come into play, and what runs otherwise beside."""
        idle = [stop for stop in self.chosen if not (stop in self.made and self.made[stop].ran)]
        missing = [name for name in self.boundaries if name not in self.met]
        told = [f"{name}={self.boundaries[name]}: no boundary of this name was made" for name in missing]
        told += (
            ["the script compiles: it ran eagerly, since a compiled region hides its stops"]
            if self._has_compiled
            else []
        )
        return [f"{stop.name}={self.chosen[stop]}: that line never ran" for stop in idle] + told


class _Switching(ast.NodeTransformer):
    """Puts acts in the place of stops."""

    def __init__(self, wanted: dict[tuple[Position, str], Stop], register: Callable[[Stop], tuple[int, str]]) -> None:
        self._wanted, self._register = wanted, register

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.expr | ast.stmt):
            stop = next((s for kind in LEGAL if (s := self._wanted.get((position_of(node), kind)))), None)
            made = None if stop is None else _act(node, stop, lambda: self._register(stop))
            if stop is not None and made is not None:
                del self._wanted[stop.position, stop.kind]  # a node that the act was given is not made over again
                return self.generic_visit(made)
        return self.generic_visit(node)


def _act(node: ast.expr | ast.stmt, stop: Stop, register: Callable[[], tuple[int, str]]) -> ast.AST | None:
    """The act in the place of a stop's node; None where the node is not the stop's own."""
    kind = stop.kind

    def key() -> ast.Constant:
        return ast.Constant(register()[0])

    match node:
        case ast.Call(func=ast.Attribute(value=of, attr=name) as function, args=args, keywords=keywords) if (
            name == kind and kind in VALUES
        ):
            crossed = next(iter([*args, *(k.value for k in keywords)]), of)
            return _under_call(node, crossed, register) or (
                call("cross", node, key(), of)
                if crossed is of
                else call("cross_by", node, key(), function, *args, keywords=keywords)
            )
        case ast.Attribute(value=of, attr="data") if kind == "data":
            return _under_call(node, of, register) or call("cross", node, key(), of)
        case ast.Call(func=function, args=args, keywords=keywords) if kind in CONTEXTS:
            return call("context", node, key(), function, *args, keywords=keywords)
        case ast.Attribute() | ast.Name() if kind in CONTEXTS:
            return call("context_type", node, key(), node)
        case ast.Call(func=function, args=args, keywords=keywords) if kind == "set_grad_enabled":
            return call("enabled", node, key(), function, *args, keywords=keywords)
        case ast.Call(func=ast.Attribute(value=of), args=args, keywords=keywords) if kind == "requires_grad_":
            return call("require", node, key(), of, *args, keywords=keywords)
        case ast.Assign(targets=[ast.Attribute(value=of)], value=value) if kind == "requires_grad":
            return ast.copy_location(ast.Expr(call("flag", node, key(), value, of)), node)
        case ast.Call(func=ast.Attribute(value=of), args=args, keywords=keywords) if kind == "zero_grad":
            return call("clear", node, key(), of, *args, keywords=keywords)
        case ast.Call(func=function, args=args, keywords=keywords) if kind == "autograd.grad":
            return call("ask", node, key(), function, *args, keywords=keywords)
    return None


def _under_call(node: ast.expr, of: ast.expr, register: Callable[[], tuple[int, str]]) -> ast.Call | None:
    """A call under a strategy that needs one; others leave it where it is, as ``super()`` must be."""
    key, strategy = register()
    if strategy not in CALLS or not isinstance(of, ast.Call):
        return None
    return call("produce", node, ast.Constant(key), of.func, *of.args, keywords=of.keywords)


# ---- as a person writes them


def chosen(texts: Sequence[str], script: str, flag: str = "--stop") -> Switches:
    """Read ``train.py:132=none``, ``132=none``, ``132:fake=scale:0.5``, or a boundary's ``NAME=STRATEGY``.

    Raises:
        ValueError: no such file, a line without a stop, several where one is meant, an illegal strategy; one line.
    """

    def stops_at(file: str) -> Sequence[Stop]:
        if not Path(file or script).is_file():
            raise ValueError(f"{file or script}: no such file")
        if not is_users(file or script):
            raise ValueError(f"{file or script}: installed code is left as it is")
        try:
            return stops_of(os.path.realpath(file or script), os.getcwd())
        except SyntaxError as error:
            raise ValueError(f"{file or script}: {error.msg}, line {error.lineno}") from None

    return read(texts, stops_at, flag)


def read(texts: Sequence[str], stops_at: Callable[[str], Sequence[Stop]], flag: str = "--stop") -> Switches:
    """The same, with the stops of a file by its name, or of the script by ""."""
    stops: dict[Stop, str] = {}
    boundaries: dict[str, str] = {}
    for text in texts:
        place, _, strategy = text.rpartition("=")
        if not place or not strategy:
            raise ValueError(f"{flag} {text}: write LINE=STRATEGY, FILE:LINE=STRATEGY or BOUNDARY=STRATEGY")
        file, line, value = _split(place)
        if line is None:
            parse_strategy(strategy, key=f"{flag} {place}")
            boundaries[place.removeprefix("stop.")] = strategy
            continue
        try:
            stop = _find(stops_at(file), line, value)
            _check(stop, strategy)
        except ValueError as error:
            raise ValueError(f"{flag} {text}: {error}") from None
        if stop.kind in VALUES:
            parse_strategy(strategy, key=f"{flag} {place}")
        stops[stop] = strategy
    return Switches(stops, boundaries)


def _split(place: str) -> tuple[str, int | None, str]:
    """(file, line, value) of a place; the file is "" for the script's own, the line None for a boundary."""
    met = re.fullmatch(r"(?:(.+?):)?(\d+)(?:#\d+)?(?::(.*))?", place)
    return (met[1] or "", int(met[2]), met[3] or "") if met else ("", None, "")


def _find(stops: Sequence[Stop], line: int, value: str) -> Stop:
    here = [stop for stop in stops if stop.line == line]
    found = [stop for stop in here if value in ("", stop.id.partition(":")[2], stop.value)]
    if len(found) == 1:
        return found[0]
    if here:
        raise ValueError(f"choose one of {', '.join(f'{stop.id} ({stop.kind})' for stop in here)}")
    if not stops:
        raise ValueError("there is no stop in the file")
    near = min(stops, key=lambda stop: abs(stop.line - line))
    raise ValueError(f"line {line} has no stop; the nearest is {near.id} ({near.kind} of {near.value})")


def _check(stop: Stop, strategy: str) -> None:
    if strategy.partition(":")[0] not in stop.legal:
        choices = ", ".join(map(spelling, stop.legal))
        raise ValueError(f"this {stop.kind} can be {choices}{nearest(strategy, stop.legal)}")
