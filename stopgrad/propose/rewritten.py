"""Sources as a run needs them: probed at every site, or with an edit in them and the values that are parts."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Mapping, Sequence
from typing import Any

from stopgrad.propose import probe
from stopgrad.propose.places import Site, assigned, dotted, sites_of
from stopgrad.rewrite.source import call, hidden

_PROBE = hidden("stopgrad.propose.probe")
Parts = Mapping[str, Sequence[tuple[int, str, str]]]  # file -> (line, variable, name of the part)


def probed(tree: ast.Module, file: str, parts: Parts, light: bool = False) -> ast.Module:
    """The tree with a probe at every site.

    Args:
        light: uses of what a variable holds get no value of their own.
    """
    sites = sites_of(tree)
    for site in sites:
        if site.kind == "statement":
            probe.names[file, site.index] = tuple(dict.fromkeys(dotted(site.node)))
    return _Probes(file, sites, light).visit(with_parts(tree, file, parts))


def with_parts(tree: ast.Module, file: str, parts: Parts) -> ast.Module:
    """The tree with a crossing after each assignment of a value that is a part."""
    wanted = list(parts.get(file, ()))
    return _Parts(wanted).visit(tree) if wanted else tree


def edited(text: str, file: str, parts: Parts) -> ast.Module:
    """The tree of a source that was edited; its lines are what tracebacks and names of losses are read from."""
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    return with_parts(ast.parse(text, file), file, parts)


class _Parts(ast.NodeTransformer):
    def __init__(self, wanted: Sequence[tuple[int, str, str]]) -> None:
        self._wanted = wanted

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        crossings = [
            self._crossing(node, variable, name)
            for line, variable, name in self._wanted
            if isinstance(node, ast.stmt) and node.lineno == line and gives(node, variable)
        ]
        if isinstance(node, ast.For | ast.With | ast.FunctionDef):
            node.body[:0] = crossings
            return node
        return [node, *crossings] if crossings else node

    @staticmethod
    def _crossing(at: ast.AST, variable: str, name: str) -> ast.stmt:
        read = ast.parse(variable, mode="eval").body
        target: Any = ast.parse(f"{variable} = 0").body[0]
        target.value = call("part", at, read, ast.Constant(name), module=_PROBE)
        for inner in ast.walk(target):
            ast.copy_location(inner, at)
        return ast.fix_missing_locations(target)


def gives(node: ast.stmt, variable: str) -> bool:
    """The statement itself, and nothing in it, gives the variable its value."""
    return any(name == variable and by is node for name, by in assigned(node))


class _Probes(ast.NodeTransformer):
    def __init__(self, file: str, sites: Sequence[Site], light: bool) -> None:
        self._file, self._light = file, light
        self._at: dict[int, list[Site]] = {}
        for site in sites:
            self._at.setdefault(id(site.node), []).append(site)

    def visit(self, node: ast.AST) -> Any:
        at = self._at.get(id(node), ())
        self.generic_visit(node)
        made: Any = node
        for site in sorted(at, key=lambda site: _ORDER.index(site.kind)):
            made = getattr(self, f"_{site.kind}")(site, node, made)
        return made

    def _call(self, act: str, at: ast.AST, *args: ast.expr) -> Any:
        return call(act, at, *args, module=_PROBE)

    def _stop(self, site: Site, node: Any, made: ast.expr) -> ast.expr:
        return self._call("stop", node, made, ast.Constant(self._file), ast.Constant(site.index))

    def _flag(self, site: Site, node: Any, made: Any) -> Any:
        where = ast.Constant(self._file), ast.Constant(site.index)
        if isinstance(node, ast.Assign):
            owner: Any = node.targets[0]
            noted = ast.Expr(self._call("flag", node, owner.value, *where))
            return [made, ast.copy_location(noted, node)]
        return self._call("flag", node, made, *where)

    def _value(self, site: Site, node: Any, made: ast.expr) -> ast.expr:
        if self._light and not isinstance(node, ast.Call | ast.BinOp | ast.UnaryOp):
            return made
        where = ast.Constant(self._file), ast.Constant(node.lineno), ast.Constant(site.index)
        return self._call("value", node, made, *where, ast.Constant(site.leaf))

    def _statement(self, site: Site, node: Any, made: Any) -> Any:
        return self._around(site, node, made if isinstance(made, list) else [made])

    def _block(self, site: Site, node: Any, made: Any) -> Any:
        if isinstance(node, ast.With | ast.AsyncWith):
            return self._around(site, node, [made])
        made.body = self._around(site, node.body[0], made.body)
        return made

    def _around(self, site: Site, at: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
        where = ast.Constant(self._file), ast.Constant(site.index)
        begins = ast.Expr(self._call("enter", at, *where))
        ends = ast.Expr(self._call("leave", at, *where, ast.Constant(site.kind == "block")))
        whole = ast.Try(body=body, handlers=[], orelse=[], finalbody=[ends])
        for made in (begins, ends, whole):
            ast.copy_location(made, at)
        return [begins, whole]


_ORDER = ("stop", "flag", "value", "statement", "block")
