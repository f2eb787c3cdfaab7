"""MAML: CPU time of the meta-loss and its backward, second order over first, for one inner step and for five.

python benchmarks/maml.py

Both take the same 25 sinusoids in turn, in one process and on one thread; the ratio is taken within each turn. The time
is the processor's, not the clock's, so that what else the machine does counts less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recipes.maml import MAML  # noqa: E402
from recipes.parts.tasks import sinusoids  # noqa: E402


def measure(inner_steps: int, turns: int) -> dict[str, Any]:
    """Median milliseconds of each order, and the median ratio."""
    tasks = sinusoids(25, 10, 10, np.random.default_rng(0))
    seconds: dict[str, list[float]] = {"none": [], "detach": []}
    recipes = {
        inner: MAML(stop={"inner": inner}, optimizer=torch.optim.Adam, inner_steps=inner_steps) for inner in seconds
    }
    for _ in range(turns):
        for inner, recipe in recipes.items():
            started = time.process_time()
            recipe.meta_loss(tasks).backward()
            seconds[inner].append(time.process_time() - started)
    second, first = (times[10:] for times in seconds.values())  # the first turns warm up
    return {
        "inner_steps": inner_steps,
        "second_order_ms": statistics.median(second) * 1e3,
        "first_order_ms": statistics.median(first) * 1e3,
        "ratio": statistics.median(a / b for a, b in zip(second, first, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(inner_steps, arguments.repeats) for inner_steps in (1, 5)]
    if arguments.json:
        print(json.dumps({"repeats": arguments.repeats, "threads": 1, "found": found}))
        return
    for each in found:
        print(
            f"{each['inner_steps']} inner steps: second order {each['second_order_ms']:.2f} ms, first order "
            f"{each['first_order_ms']:.2f} ms, ratio {each['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
