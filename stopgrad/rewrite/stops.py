"""The stops that stand in a source: each place where a gradient can be stopped, found in the syntax tree."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from stopgrad.rewrite.source import parsed

# By kind: what stands in the source, and what it may be switched to, as it stands first.
VALUES = ["detach", "detach_", "data"]
CROSSINGS = ["detach", "detach_", "data", "none", "scale", "reverse"]
CALLS = ["no_grad", "inference_mode", "freeze"]
CONTEXTS = ["no_grad", "inference_mode"]
LEGAL = {
    "detach": CROSSINGS,
    "detach_": ["detach_", "none"],  # it works on what it is called on
    "data": ["data", *(s for s in CROSSINGS if s != "data")],
    "no_grad": ["no_grad", "inference_mode", "none"],
    "inference_mode": ["inference_mode", "no_grad", "none"],
    "set_grad_enabled": ["no_grad", "none"],
    "requires_grad_": ["freeze", "none"],
    "requires_grad": ["freeze", "none"],
    "zero_grad": ["timely", "late", "never"],
    "autograd.grad": ["detach", "none"],
}
OTHERWISE = {"zero_grad": "late"}  # what an arm does with a stop of this kind; "none" with the others
Position = tuple[int, int, int, int]


@dataclass(frozen=True)
class Stop:
    """A stop in a source.

    Attributes:
        file: absolute.
        line: where it stands; of several lines the one on which its name does.
        kind: one of ``LEGAL``.
        value: what it stops, as the source spells it: a variable, a call, the function that a decorator is on.
        position: of its node: first line and column, last line and column.
        is_call: what it stops is a call, so that it can be put under ``no_grad`` instead.
        id: ``line``, with the value where several stand on one line, and a number where those are equal too.
        shown: the file as it is named; "" for a notebook's cell.
    """

    file: str
    line: int
    kind: str
    value: str
    position: Position
    is_call: bool = False
    id: str = ""
    shown: str = ""

    @property
    def legal(self) -> list[str]:
        """The strategies that it may be switched to, as it stands first."""
        return LEGAL[self.kind] + (CALLS if self.is_call and self.kind != "detach_" else [])

    @property
    def name(self) -> str:
        """``file:id``."""
        return f"{self.shown}:{self.id}" if self.shown else self.id


def position_of(node: ast.expr | ast.stmt) -> Position:
    return node.lineno, node.col_offset, node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


@lru_cache(maxsize=1024)
def stops_of(file: str, home: str) -> tuple[Stop, ...]:
    """All stops of a file, by line; the file is named by its way from ``home``, if it lies below.

    Raises:
        SyntaxError, OSError: it cannot be read.
    """
    relative = os.path.relpath(file, home)
    return tuple(named(stops_in(parsed(file), file), file if relative.startswith("..") else relative))


def named(stops: Sequence[Stop], shown: str = "") -> list[Stop]:
    """With ids, by line."""
    stops = sorted(stops, key=lambda stop: (stop.line, stop.position))
    on_line, alike = Counter(s.line for s in stops), Counter((s.line, s.value) for s in stops)
    counted: Counter[tuple[int, str]] = Counter()
    out = []
    for stop in stops:
        key = stop.line, stop.value
        counted[key] += 1
        name = f"{stop.line}" if on_line[stop.line] == 1 else f"{stop.line}:{stop.value}"
        name += f"#{counted[key]}" if alike[key] > 1 else ""
        out.append(replace(stop, id=name, shown=shown))
    return out


def stops_in(tree: ast.AST, file: str) -> list[Stop]:
    """All stops of a tree, without ids."""
    called = {id(c.func) for c in ast.walk(tree) if isinstance(c, ast.Call)}
    decorators = {id(d): f.name for f in ast.walk(tree) if isinstance(f, _DECORATED) for d in f.decorator_list}
    bodies = {id(i.context_expr): w for w in ast.walk(tree) if isinstance(w, ast.With | ast.AsyncWith) for i in w.items}
    fixed = {id(inner) for node in ast.walk(tree) for inner in _fixed(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr | ast.stmt) or id(node) in fixed:
            continue
        for kind, line, value, is_call in _stop(node, id(node) in called):
            if id(node) in decorators:
                value = decorators[id(node)]
            elif id(node) in bodies:
                value = ", ".join(_stored(bodies[id(node)])) or spelled(bodies[id(node)].body[0])
            found.append(Stop(file, line, kind, value, position_of(node), is_call))
    return found


def _fixed(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a node and must be a name: a pattern's value, a class that is derived from."""
    if isinstance(node, ast.pattern):
        yield from ast.walk(node)
    elif isinstance(node, ast.ClassDef):
        yield from node.bases


_DECORATED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _stop(node: ast.AST, is_called: bool) -> Iterator[tuple[str, int, str, bool]]:
    """(kind, line, value, is_call) of a node that is a stop."""
    match node:
        case ast.Call(func=ast.Attribute(value=of, attr="detach" | "detach_" as kind)):
            # torch.detach(x), Tensor.detach(x): of a module or class, what is detached stands in the brackets
            of = next(iter(_given(node)), of)
            yield kind, node.func.end_lineno or node.lineno, spelled(of), isinstance(of, ast.Call)
        case ast.Attribute(value=of, attr="data", ctx=ast.Load()):
            yield "data", node.end_lineno or node.lineno, spelled(of), isinstance(of, ast.Call)
        case ast.Call(func=ast.Attribute(attr=kind) | ast.Name(kind)) if kind in CONTEXTS:
            yield kind, node.lineno, "", False
        case ast.Attribute(attr=kind, ctx=ast.Load()) | ast.Name(kind, ast.Load()) if kind in CONTEXTS:
            if not is_called:  # a decorator, or kept
                yield kind, node.lineno, "", False
        case ast.Call(func=ast.Attribute(attr="set_grad_enabled") | ast.Name("set_grad_enabled")):
            if _may_be_false(*_given(node)[:1]):
                yield "set_grad_enabled", node.lineno, "", False
        case ast.Call(func=ast.Attribute(value=of, attr="requires_grad_")):
            if _may_be_false(*_given(node)[:1]):
                yield "requires_grad_", node.func.end_lineno or node.lineno, spelled(of), False
        case ast.Assign(targets=[ast.Attribute(value=of, attr="requires_grad")], value=flag) if _may_be_false(flag):
            yield "requires_grad", node.lineno, spelled(of), False
        case ast.Call(func=ast.Attribute(value=of, attr="zero_grad")):
            yield "zero_grad", node.func.end_lineno or node.lineno, spelled(of), False
        case ast.Call(func=ast.Attribute(value=ast.Name("autograd") | ast.Attribute(attr="autograd"), attr="grad")):
            if not any(k.arg == "create_graph" and not _may_be_false(k.value) for k in node.keywords):
                yield "autograd.grad", node.lineno, spelled(node.args[0]) if node.args else "", False


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _may_be_false(flag: ast.expr | None = None) -> bool:
    return flag is not None and not (isinstance(flag, ast.Constant) and flag.value)


def _stored(node: ast.With | ast.AsyncWith) -> list[str]:
    """The names that a block assigns, the first ones."""
    inside = (n for statement in node.body for n in ast.walk(statement))
    stores = [n for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys(n.id for n in sorted(stores, key=position_of)))[:3]


def spelled(node: ast.expr | ast.stmt, longest: int = 40) -> str:
    """A node's source in one line, cut where it is long."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
