"""Kill runs with SIGKILL, resume each, and compare its weights with those of a run that was left alone.

    python -m conf_tests.faults.kills                          # 50 kills over all recipes
    python -m conf_tests.faults.kills --kills 500 --seed 3     # a soak

A kill comes at a random moment of the training, or, every fifth, as soon as a half-written checkpoint is seen. A run
that had no checkpoint yet is started again. Lost is a run that cannot be resumed to its end; all recipes promise the
same bits.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from conf_tests.conformance.catalogue import CONFIGS, declared
from conf_tests.helpers import result, start, train, wait_for

STEPS = 300  # of small sizes: long enough to be killed in the middle
SECONDS = 120


def overrides(recipe: str) -> list[str]:
    steps = [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS // 3}"]
    every = ["trainer.log_every_n_steps=20", "callbacks.last.every_n_train_steps=3"]
    return [f"recipe={recipe}", "logger=none", *steps, *every, *declared(recipe).small]


class Left:
    """The run that was left alone: its weights, and how long its training took."""

    def __init__(self, recipe: str, folder: Path) -> None:
        started = time.monotonic()
        process = begin(recipe, folder / "whole")
        wait_for((folder / "whole" / "config.yaml").exists, process)
        began = time.monotonic()
        process.join(SECONDS)
        process.kill()
        self.seconds, self.setup = time.monotonic() - began, began - started
        self.weights = result(folder / "whole")["weights_sha256"]


def begin(recipe: str, folder: Path) -> Any:
    log = folder.with_suffix(".log")
    return start(*overrides(recipe), f"hydra.run.dir={folder}", cwd=folder.parent, out=log, err=log)


def kill(recipe: str, left: Left, folder: Path, aimed: bool, at: random.Random) -> str:
    """Kill one run, resume it; what came of it."""
    run = folder / "killed"
    process = begin(recipe, run)
    wait_for((run / "config.yaml").exists, process)
    if aimed:
        skip = at.randrange(1, 6)  # of the checkpoints, so that the one before is there
        wait_for(lambda: any(run.glob("checkpoints/*.ckpt")), process)
        for _ in range(skip):
            wait_for(lambda: any(run.glob("checkpoints/.*.tmp")), process)
            time.sleep(at.uniform(0, 0.004))
    else:
        time.sleep(at.uniform(0, left.seconds))
    in_the_middle = any(run.glob("checkpoints/.*.tmp"))
    process.kill()
    process.join()
    last = run / "checkpoints" / "last.ckpt"
    where = ["resumed from its checkpoint", "started again, there was none"][not last.exists()]
    resume = [f"ckpt_path={last}"] if last.exists() else []
    ran = train(*overrides(recipe), *resume, f"hydra.run.dir={folder / 'resumed'}", cwd=folder, seconds=SECONDS)
    if not (folder / "resumed" / "result.json").exists():
        return f"LOST: {ran.stderr.strip()[-300:]}"
    found = result(folder / "resumed")
    if found["status"] != "finished":
        return f"LOST: {found.get('message')}"
    same = "same bits" if found["weights_sha256"] == left.weights else "OTHER WEIGHTS"
    return f"{where}{' (killed in the middle of a write)' if in_the_middle else ''}, {same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(CONFIGS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, to run them in pieces")
    arguments = parser.parse_args()
    left: dict[str, Left] = {}
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.first, arguments.first + arguments.kills):
            recipe = arguments.recipes[number % len(arguments.recipes)]
            if recipe not in left:
                Path(name, recipe).mkdir()
                left[recipe] = Left(recipe, Path(name, recipe))
            folder = Path(name, str(number))
            folder.mkdir()
            outcome = kill(recipe, left[recipe], folder, number % 5 == 4, random.Random(f"{arguments.seed} {number}"))
            outcomes[outcome] += 1
            print(f"{number:4} {recipe:16} {outcome}", flush=True)
    print(*(f"{count} {outcome}" for outcome, count in outcomes.most_common()), sep="\n")
    sys.exit(any("LOST" in outcome or "OTHER" in outcome for outcome in outcomes))


if __name__ == "__main__":
    main()
