"""The page docs/audit.md: its example runs and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")


def test_the_first_example_prints_what_the_page_says(tmp_path: Path) -> None:
    code, said = re.findall(r"```(?:python)?\n(.*?)```", PAGE, flags=re.DOTALL)[:2]
    (tmp_path / "gan.py").write_text(code)
    done = subprocess.run([sys.executable, "gan.py"], cwd=tmp_path, capture_output=True, text=True, check=True)

    def shape(text: str) -> list[str]:
        return re.sub(r"\d\.\de[-+]\d+", "N", text).split()  # weights and noise are random: all but the norms is fixed

    assert shape(done.stdout) == shape(said)


def test_every_kind_of_cut_is_on_the_page() -> None:
    from conf_tests.audit.cases import CASES

    assert all(f"`{case.kind}`" in PAGE for case in CASES if case.kind)
