"""From an error message to its exhibit: cause, fix, and how to find the line. Does not import torch."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable

from stopgrad.museum import Exhibit, exhibits, plain

_ESCAPES = re.compile(r"(?:\x1b|\\u001b|\\x1b|\\033)\[[0-9;]*[A-Za-z]")
_QUOTED = re.compile(r'\\+(?:[nrt](?=\W|[A-Z]|$)|(?=["\']))')  # line breaks and quotes as JSON and repr write them
# What stands before a line of a message: frames that rich draws, ranks, workers, containers, times and levels of a log.
_BEFORE = re.compile(
    r"^\s*(?:[│┃|]|\[(?:default|rank)?\d+\]:?|\([\w ]+,? (?:pid|ip)=[^)]*\)|[\w./-]+\s+\|(?=\s)"
    r"|\[?\d{4}-\d\d-\d\d[T ][\d:.,+Z]+\]?|[-:]?\s*\[?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?\s*[-:|]?(?=\s))",
    re.M,
)
_AFTER = re.compile(r"\s*[│┃|]\s*$", re.M)
_ONE_MESSAGE = 160  # characters without spaces: matches that end this close together are parts of one message

FIND = """\
  from stopgrad import audit

  with audit(model) as a:          # a module, or {"name": module}
      loss = ...                   # your forward and your loss, as they are
      a.loss("loss", loss)
  print(a.matrix())                # for each part: open, zero, blocked or independent, and the line that cut it"""


def squeezed(text: str) -> str:
    """``text`` without spaces, colours, frames and what a log puts before its lines: however often it was wrapped."""
    text = _QUOTED.sub("\n", _ESCAPES.sub("", text))
    while (bare := _AFTER.sub("", _BEFORE.sub("", text))) != text:
        text = bare
    return "".join(text.split())


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", ""))


def find(text: str) -> list[Exhibit]:
    """The exhibits whose message occurs in ``text``, the likeliest first; an empty list when none does.

    ``text`` may be a message, a traceback or a whole log: line breaks, colours and frames are looked through. The last
    message in the text is the likeliest, since it is what stopped the program; of several patterns that match it, the
    one that matches most of it.
    """
    flat = squeezed(text)
    hits: list[tuple[int, int, Exhibit]] = []
    for exhibit in exhibits().values():
        spans = [match.span() for pattern in exhibit.patterns for match in _compiled(pattern).finditer(flat)]
        if spans:
            start, end = max(spans)
            hits.append((end, end - start, exhibit))
    last = max((end for end, _, _ in hits), default=0)

    def rank(hit: tuple[int, int, Exhibit]) -> tuple[bool, int]:
        end, length, _ = hit
        same_message = last - end <= _ONE_MESSAGE
        return not same_message, -length if same_message else -end

    return [exhibit for _, _, exhibit in sorted(hits, key=rank)]


def answer(text: str) -> str | None:
    """What to print for ``text``, or None when no message in it is known."""
    found = find(text)
    if not found:
        return None
    first, *others = found
    parts = [
        first.title,
        plain(first.summary),
        f"Why\n{plain(first.sections['Why'])}",
        f"Fix\n{plain(first.sections['Fix'])}",
        "Find the line\n" + "\n\n".join([plain(first.sections[k]) for k in ("Find",) if k in first.sections] + [FIND]),
        f"See it happen: python -m stopgrad museum {first.name}",
    ]
    if others:
        parts.append("Also possible here: " + "; ".join(f"{e.name} ({e.title})" for e in others))
    return "\n\n".join(parts)


def tee(lines: Iterable[str]) -> str:
    """Pass a program's output through, and return all of it."""
    seen = []
    for line in lines:
        sys.stdout.write(line)
        sys.stdout.flush()
        seen.append(line)
    return "".join(seen)
