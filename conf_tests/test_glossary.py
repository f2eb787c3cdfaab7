"""docs/glossary.md: each term in one sentence, in order, with a page where it is met."""

from __future__ import annotations

import re

import pytest

from conf_tests.helpers import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "glossary.md").read_text(encoding="utf-8")
ENTRIES = {
    term: (anchor, " ".join(text.split()))
    for anchor, term, text in re.findall(r'^- <a id="([\w-]+)"></a>\*\*(.+?)\*\*(.+?)(?=\n- |\Z)', PAGE, re.M | re.S)
}


def test_they_are_many_and_in_order():
    assert len(ENTRIES) == PAGE.count("\n- ") > 40
    assert [*ENTRIES] == sorted(ENTRIES, key=str.lower)
    anchors = [anchor for anchor, _ in ENTRIES.values()]
    assert len({*anchors}) == len(anchors)


@pytest.mark.parametrize("term", ENTRIES)
def test_a_term_is_one_sentence_and_is_met_where_it_says(term):
    anchor, text = ENTRIES[term]
    said, title, link = re.fullmatch(r"(?:\([^)]*[一-鿿]\))?: (.+) \(\[([^\]]+)\]\(([^)]+)\)\)\.", text).groups()
    assert "." not in re.sub(r"`[^`]*`", "", said).replace("`", ""), "one sentence"
    page = (DOCS / link.partition("#")[0]).read_text(encoding="utf-8").lower()
    word = re.split(r"[, ]", term.lower().replace("-", " "))[0]
    assert word.removesuffix("ping") in page.replace("-", " "), f"{title} does not speak of it"
    assert anchor.split("-")[0] in term.lower().replace("_", "-")
