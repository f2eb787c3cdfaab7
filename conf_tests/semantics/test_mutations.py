"""The tests of this folder are tested: negating any one of their assertions makes that test fail.

An assertion that is never reached, or stands behind a `raises` that ends the test early, would survive. (The rows of
the page are flipped value by value in test_claims.)
"""

from __future__ import annotations

import ast
import copy
import importlib
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEVER = "a message that torch never says"
FILES = [
    "test_detach",
    "test_modes",
    "test_numbers",
    "test_hooks",
    "test_higher_order",
    "test_transforms",
    "test_kinds",
]


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


def arguments(test: object) -> list[dict[str, object]]:
    """The cases of a test, from its `parametrize` marks."""
    cases: list[dict[str, object]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
            values = [(v,) if len(names) == 1 else v for v in mark.args[1]]
            cases = [case | dict(zip(names, value, strict=True)) for case in cases for value in values]
    return cases


def covered(file: str):
    """The test functions of a file that need no fixture and compile nothing."""
    module = importlib.import_module(f".{file}", __package__)
    for node in ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and "compiled" not in node.name:
            cases = arguments(getattr(module, node.name))
            if {a.arg for a in node.args.args} == set(cases[0]):
                yield vars(module), node, cases


def passes(test, case) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            test(**case)
        except (AssertionError, UserWarning, pytest.fail.Exception):
            return False  # pytest.warns raises the warning again when its message does not match
    return True


CASES = [(file, *test) for file in FILES for test in covered(file)]


@pytest.mark.parametrize(
    ("file", "scope", "function", "cases"), CASES, ids=[f"{file}-{node.name}" for file, _, node, _ in CASES]
)
def test_a_negated_assertion_fails(file, scope, function, cases):
    assert sites(function), "a test without an assertion"
    for line, mutant in mutants(function):
        mutant.decorator_list = []
        namespace = dict(scope)
        exec(compile(ast.Module([mutant], type_ignores=[]), f"{file}.py", "exec"), namespace)
        assert not all(passes(namespace[function.name], case) for case in cases), f"{file}.py:{line} survives"


def test_nearly_all_tests_are_covered():
    written = sum(
        isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for file in FILES
        for node in ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8")).body
    )
    assert len(CASES) >= 0.9 * written
