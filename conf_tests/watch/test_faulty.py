"""Scripts with faults that were met in public code: ``run`` finds each, at its line, and nothing once it is mended.

A script of faulty/ stands there with its fault. ``# finds: SEVERITY NAME`` is what is found, ``# here`` the line, where
a line is told; ``# also: NAME`` follows from it. ``# mended: CODE``, once or more, is what the next line is to be;
without CODE, that line is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conf_tests.watch.processes import findings, grave

SCRIPTS = sorted((Path(__file__).parent / "faulty").glob("*.py"))

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)


def mended(source: str) -> str:
    """The script with the lines of its ``# mended:`` comments in place of those that follow them."""
    lines: list[str] = []
    instead: list[str] = []
    for line in source.splitlines():
        comment = re.fullmatch(r"( *)# mended:(?: (.*))?", line)
        if comment:
            instead.append(comment[1] + (comment[2] or ""))
        else:
            lines += instead or [line]
            instead = []
    return "\n".join(lines) + "\n"


def test_mended():
    source = "a\n# mended: b\n# mended:     c\nd\n    # mended:\n    e\nf\n"
    assert mended(source) == "a\nb\n    c\n    \nf\n"


@each
def test_it_is_found(script, tmp_path):
    source = script.read_text()
    (expected,) = re.findall(r"^# finds: (error|warning|note) (\w+)$", source, re.M)
    here = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# here")]
    ran, found = findings(script, tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert {finding["name"] for finding in grave(found)} <= {expected[1], *re.findall(r"^# also: (\w+)$", source, re.M)}
    mine = [finding for finding in found if (finding["severity"], finding["name"]) == expected]
    assert mine, found
    if here:
        assert {(finding["file"], finding["line"]) for finding in mine} == {(str(script), line) for line in here}


@each
def test_mended_it_is_not(script, tmp_path):
    copy = tmp_path / script.name
    copy.write_text(mended(script.read_text()))
    ran, found = findings(copy, tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert grave(found) == []
