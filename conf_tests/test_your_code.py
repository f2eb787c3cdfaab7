"""docs/your_code.md: each program runs as it stands and prints what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conf_tests.helpers import ROOT

PAGE = (ROOT / "docs" / "your_code.md").read_text(encoding="utf-8")
PROGRAMS = {
    heading: re.findall(r"^```(?:python)?\n(.*?)^```$", section, re.M | re.S)
    for heading, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}


def test_sections_are_found():
    assert {"A plain loop", "Lightning", "Hugging Face", "peft"} <= {*PROGRAMS}
    assert {len(blocks) for blocks in PROGRAMS.values()} == {2}


@pytest.mark.parametrize("heading", PROGRAMS)
def test_it_prints_what_the_page_says(heading: str, tmp_path: Path) -> None:
    code, said = PROGRAMS[heading]
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.M):
        pytest.importorskip(package)
    (tmp_path / "program.py").write_text(code)
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

    def shape(text: str) -> list[str]:
        text = re.sub(r"\d+\.\d+(e[-+]\d+)?", "N", text)  # weights and batches are random: all but the norms is fixed
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    printed = shape(ran.stdout)
    assert [line for line in printed if line in shape(said)] == shape(said), ran.stdout
