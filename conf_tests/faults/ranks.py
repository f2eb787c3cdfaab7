"""Kill one rank of two with SIGKILL, let the run go on by itself, and compare its weights with one left alone.

    python -m conf_tests.faults.ranks                          # 20 kills
    python -m conf_tests.faults.ranks gan bandit --kills 100 --seed 3

A kill comes at a random moment of the training, to a random rank. With ``trainer.restarts=2`` the ranks are started
again and go on from the last checkpoint, or from the start where there is none. Then nothing may be left: no process,
no port, no file in the folder for temporary ones.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from os import kill
from pathlib import Path
from typing import Any

from conf_tests.conformance.catalogue import declared
from conf_tests.faults.processes import descendants, described, left_of, listening, listening_on, ranks_of
from conf_tests.helpers import result, start, wait_for

STEPS = 600
SECONDS = 300
ENDED = "it had ended before the kill"  # and counts for nothing
RECIPES = ["dirac_gan", "gan", "bandit", "loss_logging"]


def begin(recipe: str, folder: Path) -> Any:
    steps = [f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS // 4}", "trainer.log_every_n_steps=20"]
    ranks = ["trainer=ddp", "trainer.restarts=2", "callbacks.last.every_n_train_steps=7"]
    (folder / "tmp").mkdir(parents=True)
    out, err = folder / "out", folder / "err"
    run = [
        f"recipe={recipe}",
        "logger=none",
        *declared(recipe).small,
        *steps,
        *ranks,
        f"hydra.run.dir={folder / 'run'}",
    ]
    return start(*run, cwd=folder, out=out, err=err, TMPDIR=str(folder / "tmp"))


def left_alone(recipe: str, folder: Path) -> tuple[str, float]:
    """The weights of an undisturbed run, and the seconds that its training took."""
    begin(recipe, folder).join(SECONDS)
    found = result(folder / "run")
    assert found["status"] == "finished", (folder / "err").read_text()
    return found["weights_sha256"], found["seconds"]


def kill_one(recipe: str, folder: Path, weights: str, seconds: float, at: random.Random) -> str:
    """Kill one rank of a run, wait for its end; what came of it."""
    process = begin(recipe, folder)
    wait_for((folder / "run" / "config.yaml").exists, process)
    time.sleep(at.uniform(0, 0.9 * seconds))
    everyone, ranks = descendants(process.pid), ranks_of(process.pid)
    if len(ranks) < 2:
        process.join(SECONDS)
        return ENDED
    ports = {address for rank in ranks for address in listening_on(rank)}
    number = at.randrange(2)
    kill(ranks[number], signal.SIGKILL)
    process.join(SECONDS)
    said = (folder / "err").read_text()
    found = result(folder / "run")
    came = ["went on from its checkpoint", "started again, there was none"]["from the start" in said]
    came = came if "restart 1 of" in said else "killed as it ended"
    left = left_of(everyone)
    files = [path.name for path in (folder / "tmp").iterdir()]
    open_ports = ports & {address for address, _ in listening()}
    if left or files or open_ports:
        return f"LEFT: processes {[described(pid) for pid in left]}, ports {open_ports}, files {files}"
    if process.exitcode or found["status"] != "finished":
        return f"LOST: {process.exitcode} {said[-300:]}"
    same = found["weights_sha256"] == weights
    return f"rank {number} killed, {came}, {'same bits' if same else 'OTHER WEIGHTS'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    alone: dict[str, tuple[str, float]] = {}
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        number = -1
        while outcomes.total() - outcomes[ENDED] < arguments.kills:
            number += 1
            recipe = arguments.recipes[number % len(arguments.recipes)]
            if recipe not in alone:
                alone[recipe] = left_alone(recipe, Path(name, recipe))
            random_one = random.Random(f"{arguments.seed} {number}")
            outcome = kill_one(recipe, Path(name, str(number)), *alone[recipe], random_one)
            outcomes[outcome] += 1
            print(f"{number:4} {recipe:16} {outcome}", flush=True)
    print(*(f"{count} {outcome}" for outcome, count in outcomes.most_common()), sep="\n")
    sys.exit(any(word in outcome for outcome in outcomes for word in ("LOST", "LEFT", "OTHER")))


if __name__ == "__main__":
    main()
