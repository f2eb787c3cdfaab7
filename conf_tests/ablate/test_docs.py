"""docs/ablate.md: its script gives what the page shows."""

from __future__ import annotations

import re

from conf_tests.helpers import ROOT
from conf_tests.watch.processes import python
from stopgrad.rewrite.stops import LEGAL

PAGE = (ROOT / "docs" / "ablate.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    return [text for kind, text in fenced if kind == language]


def words(text: str) -> list[list[str]]:
    """Its lines, however wide their columns are."""
    return [line.split() for line in text.strip().splitlines()]


def test_the_script_of_the_page(tmp_path):
    (script,), (sites, arms) = blocks("python"), blocks("")
    (tmp_path / "td.py").write_text(script)
    commands = re.findall(r"^`python (-m stopgrad \w+.* td\.py.*?)`", PAGE, re.M)
    listed, compared = (python(*command.split(), cwd=tmp_path) for command in commands)
    assert words(listed.stderr) == words(sites)
    told = re.sub(r" +(\d+\.\d\dx|<0\.01x|time)$|; \S+x time(?=\.$)", "", compared.stdout.lstrip(), flags=re.M)
    assert words(told)[: len(words(arms))] == words(arms)


def test_the_page_names_every_kind_of_stop():
    for kind in LEGAL:
        assert kind in PAGE, kind
