"""MkDocs hooks: the navigation, with the recipes that ``--help`` lists, and a page for each exhibit of the museum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from stopgrad.museum import Exhibit, exhibits
from stopgrad.museum.explain import FIND
from stopgrad.runner.declared import recipe_files

DOCS = Path(__file__).parent


def on_config(config: Any) -> Any:
    """Pages in reading order. A recipe without a page, or a page in no place here, fails the build."""
    recipes = [f"recipes/{name}.md" for name in recipe_files(DOCS.parent / "configs")]
    config.nav = [
        {"Home": "index.md"},
        {"Any script": ["run.md", "ablate.md", "propose.md", "notebooks.md"]},
        {"Which one": "which.md"},
        {"Semantics": [{"English": "semantics.md"}, {"中文": "zh/semantics.md"}]},
        {"Museum": ["museum/index.md", *(f"museum/{name}.md" for name in exhibits())]},
        {"Recipes": ["recipes/index.md", *recipes]},
        {"Comparison": "comparison.md"},
        {"Audit": ["audit.md", "your_code.md", "reports.md"]},
        {"Several processes": "distributed.md"},
        {"Your own project": "own_project.md"},
        {"Design": "design.md"},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "museum/index.md", content=index()))
    for exhibit in exhibits().values():
        files.append(File.generated(config, f"museum/{exhibit.name}.md", content=page(exhibit)))
    return files


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
    parts += ['=== "What to change"', indented(exhibit.sections["Script"])]
    for title, fixed in (("Broken", False), ("Fixed", True)):
        parts += [f'=== "{title}"', indented(f"```python\n{exhibit.script(fixed=fixed).rstrip()}\n```")]
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


def indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def short(url: str) -> str:
    """``owner/name#12`` for a thread on GitHub."""
    owner, name, _, number = url.removeprefix("https://github.com/").split("/")[:4]
    return f"{owner}/{name}#{number}"
