"""The checks before a run, and what every run carries and leaves."""

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
