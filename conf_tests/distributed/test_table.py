"""Every recipe is launched by train.py on two ranks, each of its strategies in turn, and does what the page says."""

import pytest

from conf_tests.distributed.table import PAGE, rows
from stopgrad.runner.declared import recipe_configs


@pytest.mark.parametrize("recipe", list(recipe_configs()))
def test_runs_as_the_page_says(recipe):
    found = rows(recipe)
    assert found == [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{recipe}` |")]
    assert "kept on both | identical" in found[0]
    for line in found:
        assert line.endswith("| identical |") or "refused by PyTorch" in line
