"""What a project says of its findings in ``pyproject.toml``: those that are silenced, each with its reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stopgrad.cuts.strategies import nearest
from stopgrad.museum import exhibits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


def silenced(start: Path, more: list[str]) -> dict[str, str]:
    """The findings that are not told, and why: of ``[tool.stopgrad.silence]`` in the nearest pyproject.toml, and more.

    Args:
        start: a folder; the file is looked for here and above.
        more: names given on the command line.

    Raises:
        ValueError: a name that no finding has, a reason that is no text, a file that is no TOML.
    """
    found: dict[str, str] = {}
    file = next((f for folder in (start, *start.parents) if (f := folder / "pyproject.toml").is_file()), None)
    if file is not None:
        for name, reason in _table(file).items():
            if not isinstance(reason, str) or not reason.strip():
                raise ValueError(f"{file}: [tool.stopgrad.silence] {name} = {reason!r}: give the reason, as text")
            found[_known(name, str(file))] = reason
    return found | {_known(name, "--silence"): "by --silence" for name in more}


def _table(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
    table = content.get("tool", {}).get("stopgrad", {}).get("silence", {})
    if not isinstance(table, dict):
        raise ValueError(f'{file}: tool.stopgrad.silence = {table!r}: a table of NAME = "reason" is expected')
    return table


def _known(name: str, where: str) -> str:
    if name not in exhibits():
        raise ValueError(f"{where}: no finding is named {name!r}{nearest(name, exhibits())}")
    return name
