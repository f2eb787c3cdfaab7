"""benchmarks/plain: each recipe's method as a plain PyTorch script, which runs by itself and needs nothing of ours."""

import ast
import math
import re

import pytest

from conf_tests.helpers import ROOT, script

FOLDER = ROOT / "benchmarks" / "plain"
RECIPES = sorted(file.stem for file in (ROOT / "recipes").glob("*.py") if file.stem != "__init__")
OURS = {"stopgrad", "recipes", "conf_tests", "lightning", "hydra", "omegaconf"}


def test_every_recipe_has_its_script():
    assert sorted(file.stem for file in FOLDER.glob("*.py")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_it_needs_nothing_of_ours(name):
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        assert not {module.partition(".")[0] for module in modules} & OURS


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains(name, tmp_path):
    """A few steps, in a folder of its own: every figure that it prints is a finite number."""
    ran = script(FOLDER / f"{name}.py", "--steps", "3", "--seed", "1", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    figures = dict(re.findall(r"^(\w+): (\S+)$", ran.stdout, re.M))
    assert len(figures) >= 2
    assert all(math.isfinite(float(figure)) for figure in figures.values()), figures
