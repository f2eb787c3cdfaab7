"""Two ranks: every recipe runs under each strategy as it declares and the page says, and trains as one process does."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from conf_tests.conformance.catalogue import CONFIGS, apart_from_the_cut, changed, composed, declared, refusal
from conf_tests.distributed.pair import SharedNoise, on_two_ranks, trainer
from conf_tests.distributed.table import PAGE, arms, broken_cells, row, rows_in, runs, written
from conf_tests.helpers import PROCESSES, ROOT
from stopgrad.cuts.strategies import flipped
from stopgrad.runner.build import build_recipe, quiet, share

STEPS = 50
FULL = [
    pytest.param(name, marks=[pytest.mark.full, *([pytest.mark.sample] if name in ("td", "dirac_gan") else [])])
    for name in CONFIGS
]


def wrong(name, arm, found):
    """How an arm ran otherwise than the recipe declares, in words; or nothing."""
    of, overrides = declared(name), arms(name)[arm]
    if words := refusal(of, overrides):
        return None if words in found.get("message", "") else f"not refused with {words!r}, as REFUSES has it"
    if found["status"] != "finished":
        return f"{found['message']}; make it run, or declare it in REFUSES"
    if len({rank["weights_sha256"] for rank in found["ranks"]}) > 1:
        return "the ranks end with other weights"
    cells = broken_cells(found)
    if cells[0] != cells[1]:
        return f"the ranks find the contract broken in other cells: {cells}"
    expected = flipped(found["stop"], of.default_stop, of.boundaries)
    return None if bool(expected) == bool(cells[0]) else f"flips {expected}, and breaks {cells[0]}"


@pytest.mark.parametrize("name", FULL)
def test_every_strategy_runs_on_two_ranks_as_declared(name):
    of, found = declared(name), runs(name)
    problems = {arm: text for arm, each in found.items() if (text := wrong(name, arm, each))}
    same = {}
    for arm, overrides in arms(name).items():
        if not refusal(of, overrides):
            config = changed(composed(f"recipe={name}", *of.small), overrides)
            same.setdefault(apart_from_the_cut(config, of.boundaries), []).append(arm)
    for first, *others in same.values() if "cuts" not in of.exempt else ():
        for arm in others:
            if found[arm]["weights_sha256"] != found[first]["weights_sha256"]:
                problems.setdefault(arm, f"cuts as {first} does, with other weights")
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


def weights_after(overrides: list[str], ranks: int) -> dict[str, np.ndarray]:
    """All weights after 50 steps in float64, on this rank."""
    quiet()
    config = share(composed(*overrides, f"trainer.max_steps={STEPS}", f"cache={ROOT / '.cache'}"), ranks)
    torch.manual_seed(config.seed)
    data, recipe = instantiate(config.data, _convert_="all"), build_recipe(config)
    options = {"precision": "64-true", "max_epochs": -1, "max_steps": STEPS, "limit_val_batches": 0}
    options |= {"callbacks": [SharedNoise()], "num_sanity_val_steps": 0}
    if ranks == 1:
        options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **options).fit(recipe, data)
    else:
        trainer(**options).fit(recipe, data)
    assert recipe.global_step == STEPS
    return {name: weight.numpy() for name, weight in recipe.state_dict().items()}


def _alone(overrides, answers):
    torch.set_num_threads(1)
    answers.put(weights_after(overrides, 1))


def alone(overrides):
    answers = PROCESSES.Queue()
    process = PROCESSES.Process(target=_alone, args=(overrides, answers), daemon=True)
    process.start()
    try:
        return answers.get(timeout=120)
    finally:
        process.kill()


@pytest.mark.parametrize("name", FULL)
def test_two_halves_train_as_the_whole(name):
    of = declared(name)
    if "ranks" in of.exempt:
        pytest.skip(of.exempt["ranks"])
    overrides = [f"recipe={name}", *of.small]
    whole = alone(overrides)
    for half in on_two_ranks(weights_after, overrides, 2):
        for tensor, expected in whole.items():
            assert np.abs(half[tensor] - expected).max() <= 1e-4 * np.abs(expected).max(), tensor
    assert any(weight.dtype == np.float64 and weight.any() for weight in whole.values())
