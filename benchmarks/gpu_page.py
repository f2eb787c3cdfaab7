"""The section of docs/distributed.md that says what benchmarks/gpu.py found, from what it left in docs/gpu.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, FILE = ROOT / "docs" / "distributed.md", ROOT / "docs" / "gpu.json"
START, END = "<!-- gpu -->\n", "<!-- end of gpu -->"
COUNTED = {  # checks of every recipe, in one row each
    "fp32": "fp32 against the CPU: losses, weights and verdict after the same steps, within ten times what a part in a "
    "million of the first weights changes",
    "run": "`python train.py`: 8 steps, validation, checkpoints, test",
    "16-mixed": "fp16 with a scaler: 20 steps, the audit's verdict and norms those of fp32",
    "bf16-mixed": "bf16: the same",
    "fsdp": "`trainer=fsdp` on one device",
    "compile": "`compile=true`: losses and verdict those of eager",
}
TOLD = ("waits", "compiled speed", "speed")  # one row for each item


def section(content: Mapping[str, Any] | None) -> str:
    """The text between the markers; of None, that nothing was measured."""
    if content is None:
        return "Nothing has run on a GPU yet: there is no `docs/gpu.json`.\n"
    return "".join(f"{line}\n" for line in _lines(content))


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    items: Mapping[str, Mapping[str, Any]] = content["items"]
    held = sum(found["ok"] for found in items.values())
    yield f"{content['card']}, torch {content['torch']}, `{content['command']}`: {held} of {len(items)} items hold."
    yield from ("", "| check | holds |", "|---|---|")
    for kind, told in COUNTED.items():
        mine = [found["ok"] for name, found in items.items() if name.partition(" ")[0] == kind]
        if mine:
            yield f"| {told} | {sum(mine)} of {len(mine)} |"
    wrong = {name: found for name, found in items.items() if not found["ok"]}
    if wrong:
        yield from ("", "What does not hold:", "", "| item | found |", "|---|---|")
        yield from (f"| `{name}` | {found['said'].replace('|', '/')} |" for name, found in wrong.items())
    timed = {name: found for name, found in items.items() if name.startswith(TOLD) and found["ok"]}
    if timed:
        yield from ("", "| item | found |", "|---|---|")
        yield from (f"| `{name}` | {found['said']} |" for name, found in timed.items())


def measured() -> Mapping[str, Any] | None:
    """What docs/gpu.json holds, if it is there."""
    return json.loads(FILE.read_text()) if FILE.exists() else None


def written(page: str, text: str) -> str:
    """The page with this text between its markers."""
    before, start, rest = page.partition(START)
    if not start:
        raise ValueError(f"{PAGE.name}: lacks {START.strip()}")
    return before + START + text + END + rest.partition(END)[2]


def write() -> None:
    PAGE.write_text(written(PAGE.read_text(), section(measured())))
