"""docs/reports.md: every thread on it is a program here, and every exhibit exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conf_tests.helpers import ROOT
from stopgrad.museum import exhibits

PAGE = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| [")]
PROGRAMS = "\n".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))
THREAD = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+")


def test_there_are_rows():
    assert len(ROWS) >= 40
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r".*\[(.*?)\].*", r"\1", row[0]))
def test_a_row_is_a_program_and_an_exhibit(row):
    (thread,) = THREAD.findall(row[0])
    assert re.search(rf"{re.escape(thread)}(?!\d)", PROGRAMS), "no program in conf_tests/reports cites it"
    named = re.findall(r"`(\w+)`", row[3])
    assert all(name in exhibits() for name in named)


def test_every_thread_of_a_program_is_on_the_page():
    assert sorted(set(THREAD.findall(PROGRAMS)) - set(THREAD.findall(PAGE))) == []
