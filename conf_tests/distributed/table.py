"""Every recipe under every legal strategy on two ranks over gloo, as the table of docs/distributed.md.

    python -m conf_tests.distributed.table                # print the table
    python -m conf_tests.distributed.table --write        # put it into docs/distributed.md
    python -m conf_tests.distributed.table gan td         # of these alone, printed or put in the place of theirs

One sweep of train.py a recipe, its arms one after the other on the same pair of processes; what is declared refused
runs by itself. Columns: how the run ended; whether each rank's audit found the contract kept, or which cells an arm
broke that is there to break them; and whether parameters, buffers and optimiser state were the same, bit for bit, on
both ranks after every batch.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf_tests.conformance.catalogue import CONFIGS, choices, declared, refusal
from conf_tests.helpers import ROOT, result, train

PAGE = ROOT / "docs" / "distributed.md"
TABLE, EXEMPT = (("<!-- table -->\n", "<!-- end of table -->"), ("<!-- exempt -->\n", "<!-- end of exempt -->"))
HEAD = ["| recipe | arm | run | contract | ranks after every batch |", "|---|---|---|---|---|"]
SHORT = ["trainer.max_steps=6", "trainer.val_check_interval=6", "trainer.log_every_n_steps=3", "logger=none"]
CELL = re.compile(r"(\w+) (?:reaches|does not reach) ([\w.]+)")


def arms(recipe: str) -> dict[str, list[str]]:
    """The overrides of the default, and of every other choice of each boundary and each switch, by name."""
    found = {f"{name}-{choice.partition(':')[0]}": overrides for name, choice, overrides in choices(recipe)}
    return {"default": [], **found}


def runs(recipe: str) -> dict[str, dict[str, Any]]:
    """What each arm of the recipe left of a run on two ranks: its ``result.json``, or the ``message`` it ended with."""
    of, known = declared(recipe), arms(recipe)
    swept = {arm: overrides for arm, overrides in known.items() if not refusal(of, overrides)}
    run = [f"recipe={recipe}", *of.small, *SHORT, "trainer=ddp", "callbacks.ranks.every_n_steps=1"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "compare").mkdir()
        nested = {arm: OmegaConf.to_container(OmegaConf.from_dotlist(overrides)) for arm, overrides in swept.items()}
        whole = OmegaConf.to_yaml({"compare": {"reference": "default", "arms": nested}})
        (folder / "compare" / "table.yaml").write_text(f"# @package _global_\n{whole}")
        sweep = ["--config-dir", name, "-m", "compare=table", f"arm={','.join(swept)}", "hydra.sweep.dir=sweep"]
        ran = train(*sweep, *run, cwd=folder)
        found = {arm: folder / "sweep" / arm / "seed-0" for arm in swept}
        missing = [arm for arm, left in found.items() if not (left / "result.json").exists()]
        if missing:
            raise RuntimeError(f"{recipe}: no result of {', '.join(missing)}\n{ran.stdout}\n{ran.stderr}")
        results = {arm: result(left) for arm, left in found.items()}
        for arm in known.keys() - swept.keys():
            ran = train(*run, *known[arm], f"hydra.run.dir={arm}", cwd=folder)
            there = (folder / arm / "result.json").exists()
            results[arm] = result(folder / arm) if there else {"status": "refused", "message": ran.stderr.strip()}
        return {arm: results[arm] for arm in known}


def broken_cells(found: Mapping[str, Any]) -> list[list[str]]:
    """On each rank, the cells of the contract that are broken, as ``loss:part``."""
    return [
        sorted({":".join(match) for text in rank["violations"] for match in CELL.findall(text.partition("\n")[0])})
        for rank in found["ranks"]
    ]


def row(recipe: str, arm: str, found: Mapping[str, Any]) -> str:
    """The arm's line of the table."""
    words = refusal(declared(recipe), arms(recipe)[arm])
    if found["status"] != "finished":
        by = " by PyTorch" if found["status"] == "raised" else ""
        told = f"refused{by}: {words}" if words and words in found["message"] else found["message"]
        return f"| `{recipe}` | `{arm}` | {told} | | |"
    cells = broken_cells(found)
    if cells[0] != cells[1]:
        contract = f"ranks differ: {cells}"
    else:
        contract = f"broken on both: {', '.join(f'`{c}`' for c in cells[0])}" if cells[0] else "kept on both"
    same = len({rank["weights_sha256"] for rank in found["ranks"]}) == 1
    return f"| `{recipe}` | `{arm}` | ran | {contract} | {'identical' if same else 'DIFFERENT'} |"


def rows(recipe: str) -> list[str]:
    return [row(recipe, arm, found) for arm, found in runs(recipe).items()]


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
    exempt: dict[str, list[str]] = {}
    for name in CONFIGS:
        if reason := declared(name).exempt.get("ranks"):
            exempt.setdefault(reason, []).append(f"`{name}`")
    texts = (
        [*HEAD, *(line for name in CONFIGS for line in lines.get(name, []))],
        [f"- {', '.join(names)}: {reason}" for reason, names in exempt.items()],
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
