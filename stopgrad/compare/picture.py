"""One picture of a comparison: the arms' curves with their spread over seeds, and samples where the runs left any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stopgrad.compare import Comparison

# Okabe & Ito's colours, which colour-blind eyes tell apart; the reference is black.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
MOST_CURVES = 3


def draw(comparison: Comparison, file: Path, arms: Sequence[str] | None = None) -> None:
    """Write the picture of the chosen arms (all, if None) to ``file``; its ending tells the format.

    Raises:
        ValueError: an arm that is not there, or nothing to draw; one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = together(comparison, arms)
    tags = curve_tags(comparison.content, [names[0] for names in groups])
    samples = {names[0]: image for names in groups if (image := comparison.sample(names[0]))}
    if not tags and not samples:
        raise ValueError(f"{file}: nothing to draw: no curves of declared metrics, and no samples")
    rows = bool(tags) + bool(samples)
    figure = Figure(figsize=(max(6.0, 4.2 * max(len(tags), 1)), 3.6 * bool(tags) + 2.6 * bool(samples) + 0.3))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    parts = figure.subfigures(rows, 1, squeeze=False, height_ratios=[3.6, 2.6][:rows])[:, 0]
    if tags:
        _curves(parts[0], comparison.content, groups, tags)
    if samples:
        _samples(parts[-1], comparison, groups, samples)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def together(comparison: Comparison, arms: Sequence[str] | None) -> list[list[str]]:
    """The chosen arms, those with equal weights and equal curves together; arms that raised have nothing to show.

    A cut that changes only what is measured, such as an attribution, leaves the weights as they are.
    """
    known = {arm["name"]: arm for arm in comparison.content["arms"]}
    for name in arms or ():
        if name not in known:
            raise ValueError(f"arms={name}: choose from {', '.join(known)}")
    chosen = [arm for name, arm in known.items() if (arms is None or name in arms) and arm["verdict"] != "raised"]
    groups: list[list[str]] = []
    for arm in chosen:
        alike = (group for group in groups if group[0] in arm["same_weights_as"])
        group = next((each for each in alike if _same_curves(comparison.content, each[0], arm["name"])), None)
        groups.append([arm["name"]]) if group is None else group.append(arm["name"])
    return groups


def _same_curves(content: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two arms are drawn alike."""
    curves = [content["curves"].get(tag, {}) for tag in content["metrics_declared"]]
    return all(each.get(one) == each.get(other) for each in curves)


def curve_tags(content: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The declared metrics that have a curve of two points, else the losses."""
    drawn = [
        tag
        for tag, curves in content["curves"].items()
        if any(len(curves.get(n, {"steps": []})["steps"]) > 1 for n in names)
    ]
    declared = [tag for tag in content["metrics_declared"] if tag in drawn]
    return (declared or [tag for tag in drawn if tag.startswith("loss")])[:MOST_CURVES]


def _curves(part: Any, content: Mapping[str, Any], groups: Sequence[Sequence[str]], tags: Sequence[str]) -> None:
    """A panel for each tag: mean over the seeds, and a band from the lowest to the highest."""
    panels = part.subplots(1, len(tags), squeeze=False)[0]
    verdicts = {arm["name"]: arm["verdict"].replace("_", " ") for arm in content["arms"]}
    for axes, tag in zip(panels, tags, strict=True):
        values: list[float] = []
        for k, names in enumerate(groups):
            curve = content["curves"][tag].get(names[0])
            if not curve:
                continue
            colour = COLOURS[k % len(COLOURS)]
            rest = f"{' = '.join(names[:4])}{f' = {len(names) - 4} more' if len(names) > 4 else ''}"
            name = rest if len(names) > 1 else f"{names[0]} ({verdicts[names[0]]})"
            axes.plot(curve["steps"], curve["mean"], color=colour, label=name, linewidth=1.6, marker=".", markersize=4)
            axes.fill_between(curve["steps"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
            values += [*curve["low"], *curve["high"]]
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
        rule = content["metrics_declared"].get(tag, {})
        for side in ("broken_above", "broken_below"):
            if side in rule and min(values) / 3 <= rule[side] <= max(values) * 3:
                axes.axhline(rule[side], color="#888888", linestyle=":", linewidth=1)
                axes.annotate("broken", (1, rule[side]), xycoords=("axes fraction", "data"), ha="right", fontsize=7)
        axes.set_title(tag, fontsize=10, loc="left")
        axes.set_xlabel("batches", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=8, frameon=False)


def _samples(part: Any, comparison: Comparison, groups: Sequence[Sequence[str]], samples: Mapping[str, Path]) -> None:
    """The samples of each arm in a row, in the colour of its curve."""
    from matplotlib.image import imread

    shown = [(k, names) for k, names in enumerate(groups) if names[0] in samples]
    panels = part.subplots(1, len(shown), squeeze=False)[0]
    for axes, (k, names) in zip(panels, shown, strict=True):
        image = imread(samples[names[0]])
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None, interpolation="nearest")
        axes.set_title(
            names[0] if len(names) == 1 else f"{names[0]} = ...", fontsize=9, color=COLOURS[k % len(COLOURS)]
        )
        axes.axis("off")
