"""Every row of the semantics page: its code prints what the table says, and the pages say what the code proves."""

from __future__ import annotations

import doctest
import re

import pytest
import torch

from .claims import CLAIMS, DIFFERENCES
from .page import PAGES, examples, judge, render, run

# The verdicts as they were first measured, by hand; `judge` must come to the same from the code.
MEASURED = {
    "true": {1, 2, 5, 10, 11, 12, 13, 15, 16, 17, 18},
    "half true": {3, 8, 14, 19, 20, 23, 24, 25, 30, 32, 34, 35, 36},
    "false": {4, 6, 7, 9, 21, 22, 26, 27, 28, 29, 31, 33, 37},
}
BY_NUMBER = pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"row{c.number}")
EXAMPLES = [(c, i) for c in CLAIMS for i, e in enumerate(examples(c.code, {}).examples) if e.want]


@pytest.fixture(scope="module")
def verdicts():
    return {claim.number: judge(claim) for claim in CLAIMS}


@BY_NUMBER
def test_verdict(claim):
    assert claim.number in MEASURED[judge(claim)]


@BY_NUMBER
def test_row_is_whole(claim):
    assert len(claim.code.strip().splitlines()) <= 18
    assert any(e.want for e in examples(claim.code, {}).examples)
    assert all(claim.says)
    assert all(claim.truth)
    assert all(claim.origin) == (claim.number not in MEASURED["true"]), "a wrong belief comes from somewhere"


@pytest.mark.parametrize(("claim", "index"), EXAMPLES, ids=[f"row{c.number}-{i}" for c, i in EXAMPLES])
def test_flipped_value_fails(claim, index):
    """Whatever a row expects, expecting something else fails."""
    torch.manual_seed(0)
    test = examples(claim.code, {"torch": torch, "nn": torch.nn})
    example = test.examples[index]
    if example.exc_msg:
        example.exc_msg = "ValueError: " + example.exc_msg.partition(": ")[2]
    else:
        example.want = flipped(example.want)
    assert "Failed example" in run(test)


def flipped(want: str) -> str:
    """Another value of the same form: a digit changed, a truth value negated, None made a zero, a word negated."""
    swaps = {"True": "False", "False": "True", "None": "0"}
    other = re.sub(r"True|False|None|\d(?=\D*$)", lambda m: swaps.get(m[0]) or str((int(m[0]) + 1) % 10), want, count=1)
    return other if other != want else "not " + want


@pytest.mark.parametrize("lang", PAGES, ids=["en", "zh"])
def test_page_on_disk_is_the_one_that_the_code_makes(lang, verdicts):
    assert PAGES[lang].read_text(encoding="utf-8") == render(lang, verdicts), "run: python -m conf_tests.semantics.page"


@pytest.mark.parametrize("lang", PAGES, ids=["en", "zh"])
def test_code_on_the_page_runs(lang):
    """What stands on the page, read back from it, is what the tests ran."""
    blocks = re.findall(r"```pycon\n(.*?)\n```", PAGES[lang].read_text(encoding="utf-8"), re.S)
    assert blocks == [claim.code.strip() for claim in CLAIMS]


def test_wrong_sentences_stand_first():
    page = PAGES[0].read_text(encoding="utf-8")
    first = page[page.index("## The sentences that are wrong") : page.index("## The sentences that are right")]
    rows = {int(n) for n in re.findall(r"^\| \[(\d+)\.\]", first, re.M)}
    assert rows == MEASURED["false"] | MEASURED["half true"]


def test_numbers_are_one_to_n():
    assert [c.number for c in CLAIMS] == list(range(1, len(CLAIMS) + 1))


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.what[0])
def test_versions_differ_as_written(difference):
    said = "no error"
    try:
        exec(difference.code, {"torch": torch})
    except RuntimeError as error:
        said = str(error)
    version = ".".join(torch.__version__.split(".")[:2])
    met = [v for v, part in difference.says.items() if part in said]
    assert met == [version] if version in difference.says else len(met) == 1


def test_doctest_is_strict_about_the_error_type():
    test = examples(">>> 1 / 0\nTraceback (most recent call last):\n    ...\nValueError: division by zero\n", {})
    assert isinstance(test, doctest.DocTest)
    assert "ZeroDivisionError" in run(test)
