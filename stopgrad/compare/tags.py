"""How curves are called in TensorBoard, which sorts its groups by name: what a recipe is judged by comes first."""

from __future__ import annotations

from collections.abc import Container

FIRST = "Metrics/"  # capitals sort before small letters


def shown(tag: str, declared: Container[str]) -> str:
    """The name in TensorBoard of what the recipe logs as ``tag``; ``declared`` is what it is judged by."""
    return f"{FIRST}{tag}" if tag in declared else tag


def logged(tag: str) -> str:
    """The name by which it was logged."""
    return tag.removeprefix(FIRST)
