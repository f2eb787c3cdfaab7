"""What a sweep of short runs costs beside the runs, and how much sooner two processes are done with it.

    python benchmarks/sweep.py

`python train.py -m compare=gan`, 11 arms of three seeds, each cut to 200 steps: the share of its wall time that is no
run's (imports, composing and checking 33 configs, the comparison at the end) and the share that is no run's training
(with it: data, networks, the metric's features, the test). Then the same by `hydra/launcher=joblib
hydra.launcher.n_jobs=2`. One thread a process; the cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from timing import spread  # noqa: E402

SIDE_BY_SIDE = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
BARS = {"beside": 0.15, "sooner": 1.8}


def sweep(steps: int, *overrides: str) -> dict[str, float]:
    """Seconds of the whole command, of its runs, and of their training steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "-m", "compare=gan", f"trainer.max_steps={steps}"]
        command += [f"trainer.val_check_interval={steps}", f"cache={ROOT / '.cache'}"]
        started = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *overrides], check=True, capture_output=True, env=environment, cwd=folder)
        found = {"wall": time.perf_counter() - started, "runs": 0.0, "training": 0.0, "finished": 0.0}
        for file in Path(folder).glob("**/result.json"):
            result = json.loads(file.read_text())
            found["runs"] += result["seconds"]
            found["training"] += (result.get("step_time") or 0.0) * result["steps"]
            found["finished"] += result["status"] == "finished"
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sweep(2)  # not counted: it fills the cache
    pairs = [(sweep(options.steps), sweep(options.steps, *SIDE_BY_SIDE)) for _ in range(options.repeats)]
    found = {
        "steps": options.steps,
        "repeats": options.repeats,
        "finished": int(pairs[0][0]["finished"]),
        "seconds": spread([one["wall"] for one, _ in pairs]),
        "seconds_side_by_side": spread([two["wall"] for _, two in pairs]),
        "beside": spread([1 - one["runs"] / one["wall"] for one, _ in pairs]),
        "no_training": spread([1 - one["training"] / one["wall"] for one, _ in pairs]),
        "sooner": spread([one["wall"] / two["wall"] for one, two in pairs]),
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"33 runs of {options.steps} steps: {found['seconds']['median']:.0f} s, {found['finished']} finished")
    print(f"  {found['beside']['median']:.0%} of it is no run's (bar: {BARS['beside']:.0%})", end=", ")
    print(f"{found['no_training']['median']:.0%} no run's training steps")
    print(f"  two processes: {found['sooner']['median']:.2f} times as soon (bar: {BARS['sooner']})")


if __name__ == "__main__":
    main()
