"""The rules, by what they look at. To import one is to enter it."""

from stopgrad.watch.rules import frozen, graphs, reach, steps

__all__ = ["frozen", "graphs", "reach", "steps"]
