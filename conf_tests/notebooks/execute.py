"""Execute the notebooks and store what they show: ``python -m conf_tests.notebooks.execute``.

A test says which is stale. The cell that installs is left out, so that nothing is asked of the network.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import torch

from conf_tests.helpers import ROOT

FOLDER = ROOT / "notebooks"
INSTALL, TIMED, PICTURE = "install", "timed", "picture"  # tags: not run; shows times; shows a picture
LIMIT = 600  # seconds a cell may take on a busy machine


def tags(cell: Any) -> list[str]:
    return cell["metadata"].get("tags", [])


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(notebook: Any, folder: Path) -> tuple[Any, float]:
    """The notebook with the outputs of a run in ``folder``, and the seconds that it took."""
    from nbclient import NotebookClient

    run = copy.deepcopy(notebook)
    run.cells = [cell for cell in run.cells if INSTALL not in tags(cell)]
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(run, timeout=LIMIT, resources=where, record_timing=False, coalesce_streams=True)
    env = os.environ | {"PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    client.execute(env=env)
    return run, time.monotonic() - began


def stored(notebook: Any, run: Any) -> Any:
    """The notebook with the outputs of the run; what shows times keeps none."""
    by_id = {cell["id"]: cell for cell in run.cells}
    whole = copy.deepcopy(notebook)
    for cell in whole.cells:
        if cell["cell_type"] == "code":
            ran = by_id.get(cell["id"])
            keeps = ran is not None and TIMED not in tags(cell)
            cell["outputs"] = [_without_addresses(output) for output in ran["outputs"]] if keeps else []
            cell["execution_count"] = None if ran is None else ran["execution_count"]
    return whole


def _without_addresses(output: Any) -> Any:
    """``<audit at 0x7f...>`` is another one in each run."""
    if "text/plain" in output.get("data", {}):
        output["data"]["text/plain"] = re.sub(r"0x[0-9a-f]+", "0x...", output["data"]["text/plain"])
    return output


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = read(path.stem)
            notebook["metadata"]["torch"] = torch.__version__.partition("+")[0]
            run, seconds = executed(notebook, Path(folder))
            nbformat.write(stored(notebook, run), path)
        print(f"{path.name}: {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
