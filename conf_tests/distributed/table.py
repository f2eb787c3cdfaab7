"""Every recipe under every legal strategy and every engine on two ranks over gloo: the table of docs/distributed.md.

    python -m conf_tests.distributed.table                # print the table
    python -m conf_tests.distributed.table --write        # put it into docs/distributed.md
    python -m conf_tests.distributed.table gan td         # of these alone, printed or put in the place of theirs

Each arm trains for five batches, in the small sizes that its recipe declares: in one process, and with half the batch
on each of two ranks by each engine, the noise of the whole batch shared out as the data are. Columns: whether each
rank's audit found the contract kept, or which cells an arm broke that is there to break them; and of each engine
whether the ranks held the same state, bit for bit, after every batch, and ended with the weights of one process.
"""

from __future__ import annotations

import argparse
import gc
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate

from conf_tests.conformance.catalogue import CONFIGS, changed, choices, composed, declared, refusal
from conf_tests.distributed.pair import SharedNoise, on_two_ranks, trainer
from conf_tests.helpers import PROCESSES, ROOT
from stopgrad.lightning import FlowAudit, RankAudit
from stopgrad.runner.averaging import AveragedGradients
from stopgrad.runner.build import build_recipe, quiet, share
from stopgrad.runner.declared import Declaration
from stopgrad.runner.sharding import FullyShard

PAGE = ROOT / "docs" / "distributed.md"
TABLE, EXEMPT = (("<!-- table -->\n", "<!-- end of table -->"), ("<!-- exempt -->\n", "<!-- end of exempt -->"))
ENGINES = {"ddp": AveragedGradients, "fsdp": lambda: FullyShard(shard=None), "fsdp trainer.shard=1": FullyShard}
HEAD = [
    f"| recipe | arm | contract | {' | '.join(f'`trainer={name}`' for name in ENGINES)} |",
    "|---|---|---|---|---|---|",
]
STEPS = 5
EQUAL = 1e-6  # of the largest element of each tensor
CELL = re.compile(r"(\w+) (?:reaches|does not reach) ([\w.]+)")


def arms(recipe: str) -> dict[str, list[str]]:
    """The overrides of the default, and of every other choice of each boundary and each switch, by name."""
    found = {f"{name}-{choice.partition(':')[0]}": overrides for name, choice, overrides in choices(recipe)}
    return {"default": [], **found}


def exempt(of: Declaration, overrides: Sequence[str]) -> str | None:
    """Why two ranks need not train as one process does, with these overrides, if the recipe says so."""
    return next(
        (of.exempt[f"ranks{arm}"] for arm in ("", *(f" {o}" for o in overrides)) if f"ranks{arm}" in of.exempt), None
    )


def trained(recipe: str, overrides: list[str], engine: str | None) -> dict[str, Any]:
    """What five batches leave on this rank, or in one process: weights, broken cells, what parted; or the error."""
    of, ranks = declared(recipe), 2 if engine else 1
    whole = composed(f"recipe={recipe}", *of.small, f"trainer.max_steps={STEPS}", f"cache={ROOT / '.cache'}")
    config = share(changed(whole, overrides), ranks)
    torch.manual_seed(config.seed)
    flow, audit = FlowAudit(on_violation="record"), RankAudit(1, on_violation="record")
    options: dict[str, Any] = {
        "precision": "32-true" if exempt(of, overrides) else "64-true",
        "max_epochs": -1,
        "max_steps": STEPS,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "callbacks": [SharedNoise(), flow, audit],
    }
    alone = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    try:
        data, module = instantiate(config.data, _convert_="all"), build_recipe(config)
        fitting = (
            trainer(ENGINES[engine](), **options)
            if engine
            else L.Trainer(**alone, enable_progress_bar=False, enable_model_summary=False, **options)
        )
        with patch("recipes.parts.frechet.SampleQuality", lambda *_: None):  # what is compared is the training
            fitting.fit(module, data)
    except Exception as error:
        return {"error": str(error).partition("\n")[0]}
    if module.global_step != STEPS:
        return {"error": f"{module.global_step} steps of {STEPS}"}
    texts = [violation.text.partition("\n")[0] for violation in flow.violations]
    return {
        "weights": {name: weight.numpy().copy() for name, weight in module.state_dict().items()},
        "cells": sorted({":".join(match) for text in texts for match in CELL.findall(text)}),
        "parted": str(audit.difference) if audit.difference else "",
    }


def of_all(recipe: str, names: Sequence[str | None]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """:func:`trained` for every arm and each of the engines, in this process."""
    quiet()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for arm, overrides in arms(recipe).items():
        for name in names:
            found[arm, name] = trained(recipe, overrides, name)
            gc.collect()  # a module and its trainer know each other
    return found


def _alone(recipe: str, answers: Any) -> None:
    answers.put(of_all(recipe, [None]))


def in_one_process(recipe: str) -> dict[tuple[str, str | None], dict[str, Any]]:
    answers = PROCESSES.Queue()
    process = PROCESSES.Process(target=_alone, args=(recipe, answers), daemon=True)
    process.start()
    try:
        return answers.get(timeout=600)
    finally:
        process.kill()
        process.join()


def apart(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference in any tensor, relative to its largest element."""
    pairs = [(found[name], tensor) for name, tensor in expected.items() if tensor.dtype.kind == "f" and tensor.size]
    return max((float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in pairs), default=0.0)


def told(engine: str, ranks: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None) -> str:
    """Of one engine: that the ranks are alike, and equal the reference; or how far they are apart."""
    if parted := next((rank["parted"] for rank in ranks if rank["parted"]), ""):
        return f"PARTED: {parted}"
    if reference is None:
        return "ranks alike"
    far = max(apart(rank["weights"], reference["weights"]) for rank in ranks)
    return "equal" if far <= EQUAL else f"{far:.0e} apart"


def row(recipe: str, arm: str, found: Mapping[str, Any]) -> str:
    """The arm's line of the table. ``found``: of each engine both ranks; of None, one process."""
    words = refusal(declared(recipe), arms(recipe)[arm])
    both = [rank for engine in ENGINES for rank in found[engine]]
    errors = list(dict.fromkeys(rank["error"] for rank in both if "error" in rank))
    if errors:
        by = f"refused by PyTorch: {words}" if words and all(words in error for error in errors) else "; ".join(errors)
        return f"| `{recipe}` | `{arm}` | {by} | | | |"
    cells = [rank["cells"] for rank in both]
    if any(each != cells[0] for each in cells):
        contract = f"RANKS DIFFER: {cells}"
    else:
        contract = f"broken: {', '.join(f'`{cell}`' for cell in cells[0])}" if cells[0] else "kept"
    reference = None if exempt(declared(recipe), arms(recipe)[arm]) else found["one process"]
    columns = [told(engine, found[engine], reference) for engine in ENGINES]
    return f"| `{recipe}` | `{arm}` | {contract} | {' | '.join(columns)} |"


def results(recipe: str) -> dict[str, dict[str, Any]]:
    """By arm: of each engine what it left on both ranks; and what one process left."""
    one, (first, second) = in_one_process(recipe), on_two_ranks(of_all, recipe, list(ENGINES), seconds=900)
    return {
        arm: {"one process": one[arm, None]} | {name: [first[arm, name], second[arm, name]] for name in ENGINES}
        for arm in arms(recipe)
    }


def rows(recipe: str) -> list[str]:
    return [row(recipe, arm, found) for arm, found in results(recipe).items()]


def rows_in(page: str) -> dict[str, list[str]]:
    """The lines of the table that a page holds, by recipe."""
    found: dict[str, list[str]] = {}
    for line in between(page, *TABLE).splitlines()[len(HEAD) :]:
        found.setdefault(line.split("`")[1], []).append(line)
    return found


def between(page: str, start: str, end: str) -> str:
    return page.partition(start)[2].partition(end)[0]


def written(page: str, new: Mapping[str, Sequence[str]]) -> str:
    """The page with these rows in the place of their recipes' old ones, without recipes that are gone; and with what
    is exempt from the comparison with one process.
    """
    lines = {**rows_in(page), **new}
    excused: dict[str, list[str]] = {}
    for name in CONFIGS:
        for check, reason in declared(name).exempt.items():
            if check.startswith("ranks"):
                arm = check.removeprefix("ranks").strip()
                excused.setdefault(reason, []).append(f"`{name}`" + (f" with `{arm}`" if arm else ""))
    texts = (
        [*HEAD, *(line for name in CONFIGS for line in lines.get(name, []))],
        [f"- {', '.join(names)}: {reason}" for reason, names in excused.items()],
    )
    for (start, end), text in zip((TABLE, EXEMPT), texts, strict=True):
        before, _, rest = page.partition(start)
        page = before + start + "".join(f"{line}\n" for line in text) + end + rest.partition(end)[2]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(CONFIGS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if not arguments.write:
        print(*HEAD, sep="\n")
    for recipe in arguments.recipes:
        found = rows(recipe)
        if arguments.write:  # each as it comes: it takes minutes
            PAGE.write_text(written(PAGE.read_text(), {recipe: found}))
        else:
            print(*found, sep="\n", flush=True)


if __name__ == "__main__":
    main()
