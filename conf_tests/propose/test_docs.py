"""docs/propose.md: its script gets the answer that the page shows, and is healthy once that is written."""

from __future__ import annotations

import re

from conf_tests.helpers import ROOT
from conf_tests.propose.asking import propose
from conf_tests.watch.processes import findings, python

PAGE = (ROOT / "docs" / "propose.md").read_text(encoding="utf-8")


def test_the_script_of_the_page(tmp_path):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
    (script,), (shown,) = ([text for kind, text in fenced if kind == language] for language in ("python", ""))
    (wish,) = re.findall(r"`python -m stopgrad propose dqn.py --not (\S+)`", PAGE)
    file = tmp_path / "dqn.py"
    file.write_text(script)
    said = propose(file, "--not", wish, "--write")
    assert said.status == 0, said.err
    assert said.out == f"{shown}\nwritten: dqn.py\n"
    ran, found = findings(file, tmp_path / "run")
    assert ran.returncode == 0
    assert not found
    assert python(file, cwd=tmp_path / "alone").returncode == 0
