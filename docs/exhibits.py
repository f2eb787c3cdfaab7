"""The museum's pages for the site: its list, and one page for each exhibit, whose source is the exhibit itself."""

from __future__ import annotations

from pathlib import Path

from stopgrad.museum import Exhibit, exhibits
from stopgrad.museum.explain import FIND

DOCS = Path(__file__).parent


def write(path: Path, text: str) -> None:
    """Only where it differs: a file with a new date is read again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def index() -> str:
    """The museum's list."""
    rooms = {False: "Failures with a message", True: "Silent failures"}
    lines = [
        "# The museum of failures",
        "",
        f"{len(exhibits())} things that go wrong around a stopped gradient. Each has a script that shows it and the",
        "lines that mend it; both are run by the tests. `python -m stopgrad museum NAME` runs one, and",
        '`python -m stopgrad explain "MESSAGE"` finds the one that a message belongs to',
        "(`python my.py 2>&1 | python -m stopgrad explain` reads it from a program).",
    ]
    for silent, heading in rooms.items():
        lines += ["", f"## {heading}", "", "| Failure | What happens |", "| --- | --- |"]
        shown = [e for e in exhibits().values() if e.silent is silent]
        lines += [f"| [{e.title}]({e.name}.md) | {' '.join(e.summary.split())} |" for e in shown]
    return "\n".join(lines) + "\n"


def page(exhibit: Exhibit) -> str:
    """One exhibit: what is seen, the diff and both scripts, why, the fix, the line, and where people met it."""
    parts = [f"# {exhibit.title}", exhibit.summary, f"    python -m stopgrad museum {exhibit.name}"]
    parts += ["## What to change", exhibit.sections["Script"]]
    for title, fixed in (("The whole script, broken", False), ("The whole script, fixed", True)):
        script = f"```python\n{exhibit.script(fixed=fixed).rstrip()}\n```"
        parts += [f'<details name="script"><summary>{title}</summary>', script, "</details>"]
    said = "Torch says nothing; the script's check does:" if exhibit.silent else "It ends with"
    parts += ["## Message", said, exhibit.sections["Message"]]
    parts += ["## Why", exhibit.sections["Why"], "## Fix", exhibit.sections["Fix"]]
    code = "\n".join(line.removeprefix("  ") for line in FIND.splitlines())
    parts += [
        "## Find the line",
        *([exhibit.sections["Find"]] if "Find" in exhibit.sections else []),
        f"```python\n{code}\n```",
    ]
    recipe = DOCS / "recipes" / f"{exhibit.recipe}.md"
    if exhibit.recipe and recipe.exists():
        parts += [
            "## In a recipe",
            f"[{exhibit.recipe}](../recipes/{exhibit.recipe}.md) shows the pattern, with the cut as a switch.",
        ]
    if exhibit.threads:
        links = [thread.partition(" ") for thread in exhibit.threads]
        parts += ["## Seen in", "\n".join(f"- [{short(url)}]({url}) {remark}".rstrip() for url, _, remark in links)]
    return "\n\n".join(parts) + "\n"


def short(url: str) -> str:
    """``owner/name#12`` for a thread on GitHub."""
    owner, name, _, number = url.removeprefix("https://github.com/").split("/")[:4]
    return f"{owner}/{name}#{number}"
