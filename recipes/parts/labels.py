"""The check that a network has an output for every label of the data."""

from __future__ import annotations

from typing import Any


def check_labels(data: Any, classes: int) -> None:
    """Refuse, before a run, labels ``data.train_labels`` (N,) that reach ``classes`` or more.

    Raises:
        ValueError: with the number that is needed.
    """
    most = int(data.train_labels.max())
    if most >= classes:
        raise ValueError(f"recipe.classes={classes}: the data has labels up to {most}; choose {most + 1}")
