"""The check that a batch has the labels that a recipe needs, and that the network has an output for each."""

from __future__ import annotations

from typing import Any


def check_labels(data: Any, classes: int, *domains: str) -> None:
    """Refuse, before a run, batches without labels, or with labels that reach ``classes`` or more.

    Args:
        data: labelled, it has ``train_labels`` (N,); of two domains, it says in ``domain`` what a batch holds.
        classes: outputs of the network.
        domains: the choices of ``data.domain`` that hold what the recipe takes.

    Raises:
        ValueError: with what to choose.
    """
    if not hasattr(data, "train_labels"):
        raise ValueError(f"needs labels, and batches of {type(data).__name__} have none; choose data=shifted_mnist5k")
    chosen = getattr(data, "domain", domains[0])
    if chosen not in domains:
        raise ValueError(f"data.domain={chosen}: its batches do not fit the recipe; choose {' or '.join(domains)}")
    most = int(data.train_labels.max())
    if most >= classes:
        raise ValueError(f"recipe.classes={classes}: the data has labels up to {most}; choose {most + 1}")
