"""Every recipe under every legal strategy on two ranks over gloo, as the table of docs/distributed.md.

    python -m conf_tests.distributed.table                # print the table
    python -m conf_tests.distributed.table --write        # put it into docs/distributed.md
    python -m conf_tests.distributed.table gan td         # of these recipes

One sweep of train.py a recipe, its arms one after the other on the same pair of processes. Columns: how the run ended;
whether each rank's audit found the contract kept, or which cells are broken, by an arm that is there to break them; and
whether parameters, buffers and optimiser state were the same, bit for bit, on both ranks after every batch.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from conf_tests.helpers import ROOT, Ran, result, train
from stopgrad.runner.declared import declaration, recipe_configs

PAGE = ROOT / "docs" / "distributed.md"
FACTOR = {"scale": "scale:0.5", "reverse": "reverse:1"}
SHORT = {"max_steps": 6, "val_check_interval": 6, "log_every_n_steps": 3}
FASTER: dict[str, dict[str, Any]] = {  # shorter, and what two ranks need
    "td": {"data": {"batch_size": 2}},
    "actor_critic": {"data": {"num_envs": 4, "episodes": 2}, "recipe": {"rollout": 8, "minibatch": 16, "epochs": 2}},
    "bandit": {"data": {"episodes": 2}},
    "td3": {"data": {"num_envs": 2, "updates_per_step": 4, "batch_size": 16, "warmup": 50, "episodes": 2}},
    "finetune": {"recipe": {"pretrain_steps": 5}},
}
NEEDS: dict[tuple[str, str], dict[str, Any]] = {  # (recipe, switch): without which the switch is refused
    ("td", "prediction"): {"stop": {"target": "none"}},
    ("td_asplit", "prediction"): {"stop": {"target": "none"}},
    ("actor_critic", "trunk"): {"recipe": {"network": "shared"}},
    ("td3", "action"): {"stop": {"critic": "none"}},
}
CELL = re.compile(r"(\w+) (?:reaches|does not reach) ([\w.]+)")


def arms(recipe: str) -> dict[str, dict[str, Any]]:
    """The default, and every other choice of each boundary and each switch, by name."""
    declared = declaration(recipe_configs()[recipe].recipe._target_)
    found: dict[str, dict[str, Any]] = {"default": {}}
    for name, choices in {**declared.boundaries, **declared.switches}.items():
        for choice in choices[1:]:
            needs = NEEDS.get((recipe, name), {})
            found[f"{name}-{choice}"] = needs | {"stop": needs.get("stop", {}) | {name: FACTOR.get(choice, choice)}}
    return found


def sweep(recipe: str, folder: Path, *overrides: str) -> Ran:
    """Run all arms of the recipe on two ranks, into ``folder``/sweep."""
    whole = {"compare": {"reference": "default", "arms": arms(recipe)}, "trainer": SHORT} | FASTER.get(recipe, {})
    config = OmegaConf.to_yaml(OmegaConf.create(whole))
    (folder / "compare").mkdir(parents=True)
    (folder / "compare" / "table.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /recipe: {recipe}\n  - override /logger: none\n{config}"
    )
    sweeping = ["--config-dir", str(folder), "-m", "compare=table", f"arm={','.join(arms(recipe))}", "trainer=ddp"]
    return train(
        *sweeping,
        "callbacks.ranks.every_n_steps=1",
        f"hydra.sweep.dir={folder / 'sweep'}",
        *overrides,
        cwd=folder,
    )


def row(recipe: str, arm: str, found: dict[str, Any]) -> str:
    """The arm's line of the table."""
    if found["status"] != "finished":
        ended = f"refused by PyTorch: {found['message'].partition(': ')[2].partition(';')[0]}"
        return f"| `{recipe}` | `{arm}` | {ended if found['message'].startswith('stop.') else found['message']} | | |"
    cells = [
        sorted({":".join(match) for text in rank["violations"] for match in CELL.findall(text.partition("\n")[0])})
        for rank in found["ranks"]
    ]
    if cells[0] != cells[1]:
        contract = f"ranks differ: {cells}"
    else:
        contract = f"broken on both: {', '.join(f'`{c}`' for c in cells[0])}" if cells[0] else "kept on both"
    same = len({rank["weights_sha256"] for rank in found["ranks"]}) == 1
    return f"| `{recipe}` | `{arm}` | ran | {contract} | {'identical' if same else 'DIFFERENT'} |"


def rows(recipe: str) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ran = sweep(recipe, folder)
        found = {arm: folder / "sweep" / arm / "seed-0" for arm in arms(recipe)}
        missing = [arm for arm, run in found.items() if not (run / "result.json").exists()]
        if missing:
            raise RuntimeError(f"{recipe}: no result of {', '.join(missing)}\n{ran.stdout}\n{ran.stderr}")
        return [row(recipe, arm, result(run)) for arm, run in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(recipe_configs()))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    lines = ["| recipe | arm | run | contract | ranks after every batch |", "|---|---|---|---|---|"]
    for recipe in arguments.recipes:
        lines += rows(recipe)
        if not arguments.write:
            print(*lines, sep="\n", flush=True)
            lines.clear()
    if arguments.write:
        before, start, rest = PAGE.read_text().partition("<!-- table -->\n")
        _, end, after = rest.partition("<!-- end of table -->")
        PAGE.write_text(before + start + "\n".join(lines) + "\n" + end + after)


if __name__ == "__main__":
    main()
