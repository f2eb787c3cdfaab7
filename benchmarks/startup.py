"""How long `train.py --help` and `--cfg job` take, against a bare Hydra application in the same run.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(config): pass
main()
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        commands = {
            f"{name} {option}": [sys.executable, str(program), *option.split()]
            for option in ("--help", "--cfg job")
            for name, program in (("bare", bare), ("train.py", ROOT / "train.py"))
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                times[name].append(seconds(command))
    median = {name: statistics.median(found) for name, found in times.items()}
    ratios = {option: median[f"train.py {option}"] / median[f"bare {option}"] for option in ("--help", "--cfg job")}
    if arguments.json:
        print(json.dumps({"repeats": arguments.repeats, "seconds": median, "ratios": ratios}))
        return
    for option, ratio in ratios.items():
        print(f"{option:<10} {median[f'train.py {option}']:.2f} s, {ratio:.2f} times bare Hydra's (bar: 2)")


if __name__ == "__main__":
    main()
