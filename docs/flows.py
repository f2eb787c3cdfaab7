"""The picture of each recipe's gradients, from the first batches of a run, and the section of its page that shows it.

``docs/generate.py`` runs this: ``--pictures`` draws, and every call writes the sections.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

START, END = "<!-- flow: made by python docs/generate.py --pictures -->\n", "<!-- end of flow -->\n"
FEW = ["trainer.max_steps=4", "trainer.val_check_interval=4", "logger=none"]  # batches: each loss of a contract comes


def picture(root: Path, name: str) -> Path:
    """Where the picture of a recipe is kept."""
    return root / "docs" / "pictures" / f"{name}-flow.svg"


def draw(root: Path, names: Sequence[str]) -> None:
    """Run the first batches of these recipes, and keep the picture that each run leaves.

    Raises:
        ValueError: a run left none; one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = ["-m", f"recipe={','.join(names)}", *FEW, f"hydra.sweep.dir={folder}"]
        done = subprocess.run([sys.executable, "train.py", *runs], cwd=root, capture_output=True, text=True)
        found = {
            json.loads(file.read_text())["recipe"]: file.with_name("flow.svg")
            for file in Path(folder).glob("**/result.json")
        }
        missing = [name for name in names if name not in found or not found[name].exists()]
        if missing:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise ValueError(f"no picture of {', '.join(missing)}: {' '.join(reason)}")
        for name in names:
            shutil.copy(found[name], picture(root, name))


def flow_section(root: Path, name: str) -> str:
    """What the page of a recipe shows of it: the picture, with its sentences for those who do not see it."""
    words = ET.parse(picture(root, name)).findtext("{http://www.w3.org/2000/svg}desc")
    return (
        f"![{words}](../pictures/{name}-flow.svg)\n\n"
        f"Measured in the first batches of `python train.py recipe={name}`: "
        "[how to read it](../audit.md#the-flow-picture).\n"
    )


def with_flow(page: str, text: str) -> str:
    """A recipe's page with this section: where it has one, or behind its first graph."""
    section = START + text + END
    if START in page:
        before, _, rest = page.partition(START)
        return before + section + rest.partition(END)[2]
    lines = page.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    end = next(i for i in range(first, len(lines)) if lines[i].strip() and not lines[i].startswith("    "))
    return "".join([*lines[:end], section, "\n", *lines[end:]])


def pages(root: Path, names: Sequence[str]) -> dict[Path, str]:
    """What the page of each recipe must hold that has a picture."""
    files = {name: root / "docs" / "recipes" / f"{name}.md" for name in names}
    return {
        file: with_flow(file.read_text(), flow_section(root, name))
        for name, file in files.items()
        if file.exists() and picture(root, name).exists()
    }
