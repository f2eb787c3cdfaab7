"""Files that a reader sees whole, or as they were before."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the one before."""
    half_written = file.with_name(f".{file.name}.tmp")
    half_written.write_text(text, encoding="utf-8")
    half_written.replace(file)
