"""The comparison for TensorBoard: a directory an arm, so that ``tensorboard --logdir runs`` needs no other setting.

Scalars are the means over the seeds; a custom-scalars layout overlays the arms; flow matrices and samples are images,
verdicts text; the hyperparameters of an arm are its cuts and its verdict, with the metrics that it is judged by.
"""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stopgrad.compare.tags import shown
from stopgrad.flow.matrix import Cell, FlowMatrix

if TYPE_CHECKING:
    from stopgrad.compare import Comparison

FOLDER = "comparison"


def write_boards(comparison: Comparison, folder: Path) -> None:
    """Write ``folder/comparison/ARM`` for every arm, in place of what stood there."""
    from torch.utils.tensorboard.writer import SummaryWriter

    content = comparison.content
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    declared = [tag for tag in content["metrics_declared"] if tag in content["curves"]]
    others = [tag for tag in content["curves"] if tag not in declared]
    for arm in content["arms"]:
        with SummaryWriter(folder / FOLDER / re.sub(r"[^\w.+-]+", "-", arm["name"])) as writer:
            if arm["name"] == content["reference"]:
                groups = {"metrics": declared, "terms": others}
                layout = {
                    name: {tag: ["Multiline", [f"^{re.escape(shown(tag, declared))}$"]] for tag in tags}
                    for name, tags in groups.items()
                    if tags
                }
                writer.add_custom_scalars(layout)
            _write_arm(writer, arm, comparison)


def _write_arm(writer: Any, arm: Mapping[str, Any], comparison: Comparison) -> None:
    from torch.utils.tensorboard.summary import hparams

    declared = comparison.content["metrics_declared"]
    for tag, curves in comparison.content["curves"].items():
        if arm["name"] in curves:
            curve = curves[arm["name"]]
            for step, value in zip(curve["steps"], curve["mean"], strict=True):
                writer.add_scalar(shown(tag, declared), value, step)
    text = f"**{arm['verdict'].replace('_', ' ')}**: {arm['sentence']}"
    writer.add_text("verdict", text + "".join(f"\n- {reason}" for reason in arm["because"]))
    chosen = {f"stop.{name}": str(choice) for name, choice in arm["stop"].items()} | {"verdict": arm["verdict"]}
    measured = [name for name in declared if name in arm["metrics"]]
    for part in hparams(chosen, {shown(name, declared): 0.0 for name in measured}):  # HParams shows its last value
        writer.file_writer.add_summary(part)
    for name in measured:
        if arm["name"] not in comparison.content["curves"].get(name, {}):  # measured once, as the run ended
            values = arm["metrics"][name]["values"].values()
            writer.add_scalar(shown(name, declared), statistics.fmean(values), arm["runs"][0]["steps"])
    if arm["flow"]["matrix"] and find_spec("matplotlib") is not None:
        writer.add_figure("flow", matrix_figure(arm["flow"]["matrix"]))
    file = comparison.sample(arm["name"])
    if file is not None and find_spec("matplotlib") is not None:
        from matplotlib.image import imread

        image = imread(file)
        writer.add_image("samples", image, dataformats="HW" if image.ndim == 2 else "HWC")


def matrix_figure(cells: Mapping[str, Mapping[str, Any]]) -> Any:
    """The flow matrix of ``comparison.json`` as a figure; cells that differ from the reference's are framed."""
    from matplotlib.patches import Rectangle

    from stopgrad.flow.pictures import matrix_figure as draw

    parts = list(dict.fromkeys(part for row in cells.values() for part in row))
    matrix = FlowMatrix(
        parts, {(loss, part): Cell(c["state"], c["norm"]) for loss, row in cells.items() for part, c in row.items()}
    )
    figure = draw(matrix)
    for i, loss in enumerate(matrix.losses):
        for j, part in enumerate(matrix.parts):
            cell = cells[loss].get(part, {})
            if cell.get("was") not in (None, cell.get("state")):
                frame = Rectangle((j - 0.48, i - 0.45), 0.96, 0.9, fill=False, edgecolor="#e07b00", linewidth=4)
                figure.axes[0].add_patch(frame)
    return figure
