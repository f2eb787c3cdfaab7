"""The runs of a sweep as a Markdown table, a row an arm, the seeds side by side; and a picture of two arms' samples.

python benchmarks/table.py runs/gan/sweep-TIME frechet health/slope
python benchmarks/table.py runs/gan/sweep-TIME --picture detach none-late docs/pictures/gan.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every ``result.json`` below ``folder``, by arm, ordered by seed."""
    arms = defaultdict(list)
    for file in sorted(folder.glob("*/seed-*/result.json")):
        recorded = json.loads(file.read_text())
        arms[recorded["arm"]].append(recorded)
    return arms


def table(arms: dict[str, list[dict[str, Any]]], metrics: list[str]) -> str:
    """One row an arm. Arms with equal weights, bit for bit and in every seed, share a letter."""
    letters: dict[tuple[str, ...], str] = {}
    lines = [f"| arm | {' | '.join(metrics)} | weights |", "|---" * (len(metrics) + 2) + "|"]
    for name, runs in sorted(arms.items()):
        if any(run["status"] == "raised" for run in runs):
            lines.append(f"| `{name}` |{' raised |' * len(metrics)} |")
            continue
        hashes = tuple(run["weights_sha256"] for run in runs)
        letter = letters.setdefault(hashes, chr(ord("A") + len(letters)))
        cells = [" ".join(f"{run['metrics'][metric]:.4g}" for run in runs) for metric in metrics]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {letter} |")
    return "\n".join(lines)


def picture(folder: Path, left: str, right: str, file: Path) -> None:
    """``samples.png`` of two arms, seed 0, side by side and twice as large."""
    images = [Image.open(folder / arm / "seed-0" / "samples.png") for arm in (left, right)]
    width, height = images[0].size
    whole = Image.new("L", (2 * width + 16, height), 255)
    for k, image in enumerate(images):
        whole.paste(image, (k * (width + 16), 0))
    whole.resize((whole.width * 3 // 2, whole.height * 3 // 2), Image.Resampling.NEAREST).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("metrics", nargs="*", default=[])
    parser.add_argument("--picture", nargs=3, metavar=("LEFT", "RIGHT", "FILE"))
    arguments = parser.parse_args()
    if arguments.picture:
        left, right, file = arguments.picture
        picture(arguments.folder, left, right, Path(file))
    else:
        print(table(read(arguments.folder), arguments.metrics))


if __name__ == "__main__":
    main()
