"""A terminal, however wide, with or without colours and Unicode: headings, paragraphs, code, tables, small curves."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

NARROWEST, WIDEST = 40, 92  # columns that are written
BARS = "▁▂▃▄▅▆▇█"
PLAIN = str.maketrans({"─": "-", "━": "=", "│": "|", "‖": "#", "→": ">", "…": "~", "×": "x", "–": "-"})
_ESCAPE = re.compile(r"\033\[[\d;]*m")
_CODES = {"bold": "1", "soft": "2", "bad": "31", "good": "32", "unsure": "33", "accent": "36", "mark": "1;31"}
STATES = {"open": "good", "blocked": "bad", "zero": "unsure", "opaque": "unsure", "independent": "soft"}


class Screen:
    """Writes to a stream.

    Args:
        stream: by default what stands as ``sys.stdout``. Colours are for a terminal, unless ``NO_COLOR`` is set or it
            is a dumb one; letters that its encoding lacks are written in ASCII.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        terminal = self.stream.isatty()
        self.colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.live = terminal and os.environ.get("TERM") != "dumb"  # a line can be written over
        columns = shutil.get_terminal_size((80, 24)).columns if terminal else 80
        self.width = max(NARROWEST, min(columns - 1, WIDEST))
        try:
            (BARS + "─━‖→…").encode(self.stream.encoding or "ascii")
            self.unicode = True
        except UnicodeEncodeError:
            self.unicode = False

    def paint(self, text: str, style: str) -> str:
        return f"\033[{_CODES[style]}m{text}\033[0m" if self.colours and text else text

    def line(self, text: str = "", whole: bool = False) -> None:
        """One line; what is too long for the screen is cut off, unless it is wanted whole."""
        if not self.unicode:
            text = text.translate(PLAIN).encode("ascii", "replace").decode()
        self.stream.write(f"{text if whole else self._cut(text)}\n")
        self.stream.flush()

    def _cut(self, text: str) -> str:
        if len(_ESCAPE.sub("", text)) <= self.width:
            return text
        kept, room = "", self.width - 1
        for part in re.split(r"(\033\[[\d;]*m)", text):
            kept += part if part.startswith("\033") else part[:room]
            room -= 0 if part.startswith("\033") else min(room, len(part))
        return f"{kept}{'…' if self.unicode else '~'}"

    def heading(self, text: str) -> None:
        self.line()
        *above, last = textwrap.wrap(f"━━ {text}", self.width, subsequent_indent="   ")
        for line in [*above, f"{last} ".ljust(self.width, "━")[: max(self.width, len(last))]]:
            self.line(self.paint(line, "accent"))
        self.line()

    def say(self, text: str, style: str = "", indent: str = "") -> None:
        """A paragraph, filled to the width."""
        for line in textwrap.wrap(text, self.width, initial_indent=indent, subsequent_indent=indent):
            self.line(self.paint(line, style) if style else line)

    def command(self, words: str, more: Sequence[str] = ()) -> None:
        """A command as it is typed, its further options below it; whole, since it is there to be copied."""
        lines = [f"$ {words}", *(f"      {option}" for option in more)]
        for line in [*(f"{line} \\" for line in lines[:-1]), lines[-1]]:
            self.line(self.paint(line, "bold"), whole=True)
        self.line()

    def code(self, source: str, marked: Iterable[int] = ()) -> None:
        """Lines with their numbers; the marked ones stand out, with an arrow where there are no colours."""
        marks = {*marked}
        for number, text in enumerate(source.splitlines(), 1):
            arrow = "→" if number in marks else " "
            line = f"{arrow}{number:3} │ {text}"
            self.line(self.paint(line, "mark") if number in marks else line)
        self.line()

    def diff(self, text: str) -> None:
        for line in text.splitlines():
            style = {"-": "bad", "+": "good"}.get(line[:1], "")
            self.line(self.paint(line, style) if style else line)
        self.line()

    def table(self, rows: Sequence[Sequence[str]], styles: Sequence[Sequence[str]]) -> None:
        """Columns, the first row its heading; where they are too wide for the screen, a block for each row."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if sum(widths) + 2 * len(widths) <= self.width:
            for row, painted in zip(rows, styles, strict=True):
                cells = [
                    self.paint(cell, style) + " " * (width - len(cell)) if style else cell.ljust(width)
                    for cell, style, width in zip(row, painted, widths, strict=True)
                ]
                self.line("  ".join(cells).rstrip())
        else:
            for row, painted in zip(rows[1:], styles[1:], strict=True):
                self.line(self.paint(row[0], "bold"))
                for name, cell, style in zip(rows[0][1:], row[1:], painted[1:], strict=True):
                    self.line(f"  {name}: {self.paint(cell, style) if style else cell}")
        self.line()

    def curve(self, name: str, values: Sequence[float], top: float) -> None:
        """``name  4.24 ▇▆▃▁ 0.28``; the highest bar is ``top``."""
        bars = ""
        if self.unicode:
            heights = [min(len(BARS) - 1, int(len(BARS) * value / top)) for value in values]
            bars = "".join(BARS[height] for height in heights[-(self.width - 32) :])
        self.line(f"{name}  {values[0]:.2f} {bars or '→'} {values[-1]:.2f}")

    def progress(self, text: str) -> None:
        """A line that the next one takes the place of; nothing where that cannot be done."""
        if self.live:
            self.stream.write(f"\r\033[K{self.paint(self._cut(text), 'soft')}" if text else "\r\033[K")
            self.stream.flush()
