"""The house: every concept has one home, and the arrows between the homes point one way. docs/design.md draws it."""

import ast
import io
import re
import sys
import tokenize

import pytest

from conf_tests.helpers import ROOT

# Each folder of stopgrad/ may import itself and what stands before it. The museum needs the words of the cuts alone.
LAYERS = ["cuts", "flow", "rewrite", "audits", "compare", "watch", "ablate", "propose", "tour", "lightning", "runner"]
MAY_IMPORT = {layer: LAYERS[: place + 1] for place, layer in enumerate(LAYERS)} | {"museum": ["cuts", "museum"]}
for layer in LAYERS[LAYERS.index("watch") :]:  # a finding is named after its exhibit
    MAY_IMPORT[layer].append("museum")
# What an extra adds to torch is imported late.
OTHERS = {"torch", "tensorboard", "google", "matplotlib", "PIL", "yaml", "pytest", "IPython", "tomli"}
MAY_NEED = {
    "ablate": OTHERS | {"numpy"},
    "lightning": OTHERS | {"lightning"},
    "runner": OTHERS | {"lightning", "hydra", "omegaconf", "pydantic", "numpy"},
}


def files(folder):
    return [file for file in sorted((ROOT / folder).rglob("*.py")) if ".venv" not in file.parts]


def imports(file):
    """The module of every import in the file, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_folder_of_the_library_has_a_place():
    folders = {file.parent.name for file in (ROOT / "stopgrad").glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT)
    assert {"cuts", "flow", "audits", "compare", "museum", "lightning", "runner"} <= folders


def test_the_picture_shows_every_folder_in_its_order():
    page = (ROOT / "docs" / "design.md").read_text()
    picture = re.search(r"^## The house\n.*?\n((?: {4}.*\n)+)", page, re.M | re.S)
    assert picture
    drawn = [name for name in re.findall(r"(?:^|\s)(\w+)/\s", picture[1]) if name in MAY_IMPORT]
    assert drawn == [*reversed(LAYERS), "museum"]


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_arrows_point_one_way(layer):
    for file in files(f"stopgrad/{layer}"):
        for module in imports(file):
            first, _, rest = module.partition(".")
            assert first not in ("recipes", "configs", "conf_tests", "train"), f"{file}: {module}"
            if first == "stopgrad" and rest:
                assert rest.partition(".")[0] in MAY_IMPORT[layer], f"{file}: {module}"


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_needs_only_what_its_extra_installs(layer):
    allowed = MAY_NEED.get(layer, OTHERS) | set(sys.stdlib_module_names) | {"stopgrad"}
    for file in files(f"stopgrad/{layer}"):
        assert {module.partition(".")[0] for module in imports(file)} <= allowed, file


def test_no_recipe_imports_another():
    recipes = {file.stem for file in (ROOT / "recipes").glob("*.py")} - {"__init__"}
    assert "gan" in recipes
    for file in files("recipes"):
        for module in imports(file):
            if module.startswith("recipes."):
                assert module.split(".")[1] == "parts", f"{file}: {module}"


def lines_of_code(text):
    """All lines but blank ones, comments and docstrings."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in layout]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted():
    text = '"""Of a module,\nlong."""\n\n# why\nx = (\n    1,  # one\n)\ndef f():\n    """Of f."""\n'
    assert lines_of_code(text) == 4


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.py")), ids=lambda file: file.stem)
def test_a_recipe_is_short(file):
    text = '"""Of a module,\nlong."""\n\n# why\nx = (\n    1,  # one\n)\ndef f():\n    """Of f."""\n'
    assert lines_of_code(text) == 4


@pytest.mark.parametrize("file", files("recipes"), ids=lambda file: file.stem)
def test_no_recipe_silences_the_type_checker(file):
    assert not re.search(r"#\s*(pyright|type):", file.read_text())


def test_no_file_is_too_long_to_read():
    """One concept a file. Tests and the museum's exhibits, which are texts, may be longer."""
    folders = (file for folder in ("stopgrad", "recipes", "benchmarks", "docs") for file in files(folder))
    counts = {file: len(file.read_text().splitlines()) for file in (ROOT / "train.py", ROOT / "setup.py", *folders)}
    assert len(counts) > 100
    assert {str(file): lines for file, lines in counts.items() if lines > 400} == {}


def test_train_py_stays_short():
    assert len((ROOT / "train.py").read_text().splitlines()) < 80
