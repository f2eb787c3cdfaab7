"""Two ranks: every recipe runs under each strategy as it declares and the page says, and trains as one process does."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from conf_tests.conformance.catalogue import CONFIGS, apart_from_the_cut, changed, composed, declared, refusal
from conf_tests.distributed.table import ENGINES, PAGE, apart, arms, exempt, results, row, rows_in, told, written
from stopgrad.cuts.strategies import flipped

FULL = [
    pytest.param(name, marks=[pytest.mark.full, *([pytest.mark.sample] if name in ("td", "dirac_gan") else [])])
    for name in CONFIGS
]


def wrong(name, arm, found):
    """How an arm ran otherwise than the recipe declares, in words; or nothing."""
    of, overrides = declared(name), arms(name)[arm]
    both = [rank for engine in ENGINES for rank in found[engine]]
    if words := refusal(of, overrides):
        refused = all(words in rank.get("error", "") for rank in both)
        return None if refused else f"not refused with {words!r}, as REFUSES has it"
    if errors := [rank["error"] for rank in both if "error" in rank]:
        return f"{errors[0]}; make it run, or declare it in REFUSES"
    cells = [rank["cells"] for rank in both]
    if any(each != cells[0] for each in cells):
        return f"the ranks or the engines find the contract broken in other cells: {cells}"
    stop = OmegaConf.to_container(changed(composed(f"recipe={name}", *of.small), overrides).stop)
    expected = flipped(stop, of.default_stop, of.boundaries)
    if bool(expected) != bool(cells[0]):
        return f"flips {expected}, and breaks {cells[0]}"
    reference = None if exempt(of, overrides) else found["one process"]
    columns = [told(engine, found[engine], reference) for engine in ENGINES]
    return None if set(columns) <= {"equal", "ranks alike"} else str(columns)


@pytest.mark.parametrize("name", FULL)
def test_every_strategy_runs_on_two_ranks_as_declared(name):
    of, found = declared(name), results(name)
    problems = {arm: text for arm, each in found.items() if (text := wrong(name, arm, each))}
    same = {}
    for arm, overrides in arms(name).items():
        if not refusal(of, overrides):
            config = changed(composed(f"recipe={name}", *of.small), overrides)
            same.setdefault(apart_from_the_cut(config, of.boundaries), []).append(arm)
    for first, *others in same.values() if "cuts" not in of.exempt else ():
        for arm in others:
            for engine in ENGINES:
                if apart(found[arm][engine][0]["weights"], found[first][engine][0]["weights"]):
                    problems.setdefault(arm, f"cuts as {first} does, with other weights, under {engine}")
    assert not problems, "\n".join(f"recipe={name} {arm}: {text}" for arm, text in problems.items())
    here = [row(name, arm, each) for arm, each in found.items()]
    assert here == rows_in(PAGE.read_text())[name], f"python -m conf_tests.distributed.table {name} --write"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_has_a_row_for_each_strategy(name):
    there = [line.split("`")[3] for line in rows_in(PAGE.read_text()).get(name, [])]
    assert there == list(arms(name)), f"stale: python -m conf_tests.distributed.table {name} --write"


def test_the_page_has_no_more_and_tells_what_is_exempt():
    page = PAGE.read_text()
    assert page == written(page, {}), "stale: write the table of some recipe, which writes this too"


def test_writing_the_rows_of_one_recipe_leaves_the_others():
    page = PAGE.read_text()
    first, *others = rows_in(page)
    new = written(page, {first: ["| `td` | `new` | | | |"]})
    assert "| `td` | `new` | | | |" in new
    assert [rows_in(new)[name] for name in others if name != "td"] == [rows_in(page)[n] for n in others if n != "td"]
    assert written(new.replace(f"`{first}`", "`gone`"), {}).count("`gone`") == 0
