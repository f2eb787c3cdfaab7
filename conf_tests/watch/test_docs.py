"""docs/run.md: its script, broken and mended, prints what the page shows."""

from __future__ import annotations

import re

from conf_tests.helpers import ROOT
from conf_tests.watch.processes import python

PAGE = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    return [text for kind, text in fenced if kind == language]


def test_the_script_of_the_page(tmp_path):
    script, mended = blocks("python")
    shown, healthy = blocks("")
    line = next(line for line in script.splitlines() if line.startswith(mended.partition(",")[0]))
    for name, text, report in (("broken", script, shown), ("mended", script.replace(line + "\n", mended), healthy)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gan.py").write_text(text)
        ran = python("-m", "stopgrad", "run", tmp_path / name / "gan.py", cwd=tmp_path / name / "cwd")
        assert ran.returncode == 0, ran.stderr
        assert re.sub(r"[^\s(]*/gan\.py", "gan.py", ran.stderr).strip() == report.strip(), name
