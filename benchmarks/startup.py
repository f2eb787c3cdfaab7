"""CPU time of `train.py --help` and `--cfg job`, against a bare Hydra application in turn.

    python benchmarks/startup.py

Both find their modules compiled, as from the second start on; the first is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from timing import spread  # noqa: E402

BARS = {"--help": 1.3, "--cfg job": 1.15}
BARE = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(config): pass
main()
"""


def seconds(command: list[str], compiled: str) -> float:
    """CPU seconds of a process that keeps its compiled modules in the folder ``compiled``."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {option: [] for option in BARS}
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        programs = [str(bare), str(ROOT / "train.py")]
        for turn in range(arguments.repeats + 1):
            for option, pairs in times.items():
                theirs, ours = (seconds([sys.executable, program, *option.split()], folder) for program in programs)
                pairs += [(theirs, ours)] if turn else []
    found: dict[str, Any] = {"repeats": arguments.repeats}
    for option, pairs in times.items():
        found[option] = {
            "seconds": spread([ours for _, ours in pairs]),
            "over bare Hydra": spread([ours / theirs for theirs, ours in pairs]),
        }
    if arguments.json:
        print(json.dumps(found))
        return
    for option, bar in BARS.items():
        took, ratio = (found[option][key]["median"] for key in ("seconds", "over bare Hydra"))
        print(f"{option:<10} {took:.2f} s, {ratio:.2f} times bare Hydra's (bar: {bar})")


if __name__ == "__main__":
    main()
