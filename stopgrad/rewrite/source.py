"""A script's code as something else makes it: rewritten in memory as it is compiled, the files left as they are."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import io
import os
import runpy
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, ModuleType
from typing import Any

from stopgrad.flow.frames import is_library

# Makes of the tree of a file another one, whose nodes keep their lines; None leaves the file as it is.
Rewrite = Callable[[ast.Module, str], ast.Module | None]

ACTS = "__stopgrad__"  # by this name a rewritten file calls stopgrad.rewrite.acts
_HIDDEN = {ACTS: "stopgrad.rewrite.acts"}  # names under which rewritten files call modules


def hidden(module: str) -> str:
    """The name under which rewritten files call a module."""
    name = f"__{module.replace('.', '_')}__"
    _HIDDEN[name] = module
    return name


def is_users(file: str) -> bool:
    """The file is code of the user's own: neither installed, nor of Python, torch or stopgrad."""
    file = os.path.abspath(file)
    return file.endswith(".py") and not is_library(file) and not file.startswith(_installed())


def _installed() -> tuple[str, ...]:
    paths = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_paths()["stdlib"]]
    return tuple(os.path.join(os.path.abspath(path), "") for path in paths)


def module_file(name: str) -> str | None:
    """The file that ``python -m NAME`` runs, found without an import of the packages that it is in.

    "" where it has none that Python reads, None where there is no such module.
    """
    places, spec, path = name.split("."), None, None
    for k in range(len(places)):
        found = (finder.find_spec(".".join(places[: k + 1]), path) for finder in sys.meta_path)
        spec = next(filter(None, found), None)
        if spec is None or (k + 1 < len(places) and spec.submodule_search_locations is None):
            return None
        path = spec.submodule_search_locations
    if path is not None:
        return module_file(f"{name}.__main__")
    return (spec.origin if spec is not None and spec.has_location else "") or ""


def parsed(file: str) -> ast.Module:
    """The tree of a file.

    Raises:
        SyntaxError: as Python would.
    """
    with io.open_code(file) as stream:
        return ast.parse(stream.read(), file)


def compiled(file: str, rewrite: Rewrite) -> CodeType:
    """The code of a file, rewritten; it is named without links, as its stops are."""
    file = os.path.realpath(file)
    tree = parsed(file)
    return compile(finished(rewrite(tree, file) or tree), file, "exec", dont_inherit=True)


def finished(tree: ast.Module) -> ast.Module:
    """The tree with the import of what it calls, where it calls it: on the first line that may have one."""
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & _HIDDEN.keys()
    after = 0
    for statement in tree.body:
        doc = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not (doc or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")):
            break
        after += 1
    for name in sorted(called):
        package, _, module = _HIDDEN[name].rpartition(".")
        tree.body.insert(after, ast.ImportFrom(package, [ast.alias(module, name)], 0, lineno=1, col_offset=0))
    return ast.fix_missing_locations(tree)


def call(act: str, at: ast.AST, *args: ast.expr, keywords: Sequence[ast.keyword] = (), module: str = ACTS) -> ast.Call:
    """A call of an act, at the place of a node; of another module by its hidden name."""
    function = ast.Attribute(ast.Name(module, ast.Load()), act, ast.Load())
    made = ast.Call(function, [*args], [*keywords])
    for node in (made, function, function.value):
        ast.copy_location(node, at)
    return ast.fix_missing_locations(made)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source, rewritten, and keeps no compiled file."""

    def __init__(self, name: str, path: str, rewrite: Rewrite) -> None:
        super().__init__(name, path)
        self._rewrite = rewrite

    def get_code(self, fullname: str) -> CodeType:
        return compiled(self.path, self._rewrite)


class _Finder:
    """Finds modules as the other finders do; the user's own are then loaded rewritten."""

    def __init__(self, rewrite: Rewrite) -> None:
        self._rewrite = rewrite

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is None:
                continue
            if type(spec.loader) is importlib.machinery.SourceFileLoader and spec.origin and is_users(spec.origin):
                spec.loader = _Loader(name, spec.origin, self._rewrite)
            return spec
        return None


@contextmanager
def rewriting(rewrite: Rewrite | None) -> Iterator[None]:
    """Inside, modules of the user's that are imported are rewritten; nothing is with None."""
    if rewrite is None:
        yield
        return
    finder: Any = _Finder(rewrite)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def execute(
    script: str,
    arguments: Sequence[str],
    *,
    module: bool = False,
    rewrite: Rewrite | None = None,
    folder: str | None = None,
) -> None:
    """Run a script, or a module, as ``python`` does; rewritten, and what it imports of the user's own with it.

    Args:
        folder: where a module is looked for; by default, the working directory.
    """
    sys.argv = [script, *arguments]
    sys.path.insert(0, folder or os.getcwd() if module else os.path.dirname(os.path.abspath(script)))
    with rewriting(rewrite):
        script = script if module else os.path.abspath(script)
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        elif rewrite is None:
            runpy.run_path(script, run_name="__main__")
        else:
            _run_rewritten(script, rewrite)


def _run_rewritten(script: str, rewrite: Rewrite) -> None:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins, __cached__=None)
    before, sys.modules["__main__"] = sys.modules["__main__"], main
    try:
        exec(compiled(script, rewrite), main.__dict__)
    finally:
        sys.modules["__main__"] = before
