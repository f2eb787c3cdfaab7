"""The tests of this folder are tested: negating any one of their assertions makes that test fail.

An assertion that is never reached, or stands behind a `raises` that ends the test early, would survive. (The rows of
the page are flipped value by value in test_claims.)
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEVER = "a message that torch never says"
FILES = ["test_detach", "test_modes", "test_numbers", "test_hooks", "test_higher_order", "test_kinds"]


def sites(tree: ast.AST) -> list[ast.AST]:
    """Assertions, and the expected messages of `pytest.raises` and `pytest.warns`."""
    return [n for n in ast.walk(tree) if isinstance(n, ast.Assert) or (isinstance(n, ast.keyword) and n.arg == "match")]


def mutants(function: ast.FunctionDef):
    for index in range(len(sites(function))):
        mutant = copy.deepcopy(function)
        site = sites(mutant)[index]
        if isinstance(site, ast.Assert):
            site.test = ast.UnaryOp(ast.Not(), site.test)
        elif isinstance(site, ast.keyword):
            site.value = ast.Constant(NEVER)
        yield site.lineno, ast.fix_missing_locations(mutant)


def plain_tests(path: Path):
    """Test functions without arguments; parametrised ones are left out here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not node.args.args:
            yield node


CASES = [(f, node) for f in FILES for node in plain_tests(HERE / f"{f}.py")]


@pytest.mark.parametrize(("file", "function"), CASES, ids=[f"{f}-{n.name}" for f, n in CASES])
def test_a_negated_assertion_fails(file, function):
    globs = vars(importlib.import_module(f".{file}", __package__))
    assert sites(function), "a test without an assertion"
    for line, mutant in mutants(function):
        module = ast.Module([mutant], type_ignores=[])
        scope = dict(globs)
        exec(compile(module, f"{file}.py", "exec"), scope)
        assert inspect.isfunction(scope[function.name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                scope[function.name]()
            except (AssertionError, UserWarning, pytest.fail.Exception):
                continue  # pytest.warns raises the warning again when its message does not match
        pytest.fail(f"{file}.py:{line} survives being negated")
