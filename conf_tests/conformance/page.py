"""What a Markdown page holds: its code, the commands in it, its pictures."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import dropwhile, takewhile


def code(text: str) -> Iterator[str]:
    """The code of a page, piece by piece: fenced and indented lines, and what stands between backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(.*)$", rest, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", rest, flags=re.M))]
    for piece in (*fenced, "\n".join(indented)):
        yield from piece.replace("\\\n", " ").splitlines()
    yield from spans


def commands(text: str, program: str) -> list[str]:
    """The commands of a page that start with ``program``, such as ``python train.py``."""
    found = (re.match(rf"\s*({re.escape(program)}\b.*)", line) for line in code(text))
    return [match[1].strip() for match in found if match]


def header_commands(text: str) -> list[str]:
    """Those in the comments at the head of a config: what is said of one stands two blanks or more behind it."""
    return re.findall(r"^# (python train\.py.*?)(?: {2,}.*)?$", text.partition("\ndefaults:")[0], flags=re.MULTILINE)


def pictures(text: str) -> list[tuple[str, str]]:
    """(what it shows, in words; its path) of every picture."""
    return re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text)


def graph(source: str) -> list[str]:
    """The first indented block of a module's docstring, line by line: the graph of losses and cuts."""
    lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    from_there = dropwhile(lambda line: not line.startswith("    "), lines)
    return [line.strip() for line in takewhile(lambda line: line[:4].isspace() or not line, from_there) if line]
