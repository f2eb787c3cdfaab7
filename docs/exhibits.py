"""The museum's pages, in English and Chinese: its list, and for the site a page of each exhibit, made from the exhibit.

docs/zh/museum.toml holds the Chinese, and of which English text it is (``of``, see ``hashed``): where that has changed,
the English stands.
"""

# ruff: noqa: E501  (a sentence is a line)

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from stopgrad.museum import Exhibit, exhibits
from stopgrad.museum.explain import FIND

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).parent
CHINESE = DOCS / "zh" / "museum.toml"
WORDS = {
    "museum": ("The museum of failures", "故障博物馆"),
    "intro": (
        "{} things that go wrong around a stopped gradient. Each has a script that shows it and the lines that mend it; both are\n"
        'run by the tests. `python -m stopgrad museum NAME` runs one, and `python -m stopgrad explain "MESSAGE"` finds the one that\n'
        "a message belongs to (`python my.py 2>&1 | python -m stopgrad explain` reads it from a program).\n"
        "[Every finding and exhibit, broken and mended](gallery.md), with pictures. [中文](../zh/museum/index.md)",
        "停止梯度（stop-gradient）时会出的 {} 种错。每件展品（exhibit）都有一个重现它的脚本和改好它的几行，两者都由测试运行。\n"
        '`python -m stopgrad museum NAME` 运行其中一件；`python -m stopgrad explain "MESSAGE"` 由报错找到对应的展品\n'
        "（`python my.py 2>&1 | python -m stopgrad explain` 从程序的输出中读取）。每件展品改前改后的\n"
        "[图](../../museum/gallery.md)。（[English](../../museum/index.md)）",
    ),
    "loud": ("Failures with a message", "有报错的故障"),
    "quiet": ("Silent failures", "无声的故障"),
    "head": ("| Failure | What happens |", "| 故障 | 现象 |"),
    "change": ("What to change", "要改什么"),
    "broken": ("The whole script, broken", "完整脚本：有错"),
    "fixed": ("The whole script, fixed", "完整脚本：改好"),
    "message": ("Message", "报错"),
    "silent": ("Torch says nothing; the script's check does:", "torch 什么也不说；报错的是脚本自己的检查："),
    "ends": ("It ends with", "脚本以此结束："),
    "flow": ("Flow", "梯度流"),
    "states": ("| broken | mended |", "| 有错 | 改好 |"),
    "why": ("Why", "原因"),
    "fix": ("Fix", "解决办法"),
    "find": ("Find the line", "找到那一行"),
    "recipe": ("In a recipe", "在配方里"),
    "shows": ("{} shows the pattern, with the cut as a switch.", "{} 展示这一模式，切断（cut）是一个开关。"),
    "seen": ("Seen in", "见于"),
}


def write(path: Path, text: str) -> None:
    """Only where it differs: a file with a new date is read again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def english(exhibit: Exhibit) -> dict[str, str]:
    sections = exhibit.sections
    return {"title": exhibit.title, "summary": exhibit.summary, "why": sections["Why"], "fix": sections["Fix"]}


def hashed(exhibit: Exhibit) -> str:
    """Of the text that is translated."""
    return hashlib.sha256(" ".join("\n".join(english(exhibit).values()).split()).encode()).hexdigest()[:8]


@functools.cache
def chinese() -> dict[str, dict[str, str]]:
    return tomllib.loads(CHINESE.read_text(encoding="utf-8"))


def untranslated() -> list[str]:
    """Exhibits without a Chinese text, or with one of another English text."""
    return [name for name, exhibit in exhibits().items() if chinese().get(name, {}).get("of") != hashed(exhibit)]


def text(exhibit: Exhibit, language: int) -> dict[str, str]:
    """``title``, ``summary``, ``why`` and ``fix``; in English where there is no Chinese."""
    return chinese()[exhibit.name] if language and exhibit.name not in untranslated() else english(exhibit)


def index(language: int = 0) -> str:
    """The museum's list."""
    word = {key: words[language] for key, words in WORDS.items()}
    up = "../" * (2 + language)
    lines = [f"# {word['museum']}", "", word["intro"].format(len(exhibits()))]
    for silent, heading in ((False, "loud"), (True, "quiet")):
        lines += ["", f"## {word[heading]}", "", word["head"], "| --- | --- |"]
        for exhibit in (each for each in exhibits().values() if each.silent is silent):
            said = text(exhibit, language)
            link = f"[{said['title']}]({up}stopgrad/museum/exhibits/{exhibit.name}.md)"
            lines.append(f"| {link} | {' '.join(said['summary'].split())} |")
    return "\n".join(lines) + "\n"


def page(exhibit: Exhibit, language: int = 0) -> str:
    """One exhibit: what is seen, the diff and both scripts, why, the fix, the line, and where people met it."""
    word, said = {key: words[language] for key, words in WORDS.items()}, text(exhibit, language)
    up = "../" * (1 + language)
    parts = [f"# {said['title']}", said["summary"], f"    python -m stopgrad museum {exhibit.name}"]
    parts += [f"## {word['change']}", exhibit.sections["Script"]]
    for title, fixed in ((word["broken"], False), (word["fixed"], True)):
        script = f"```python\n{exhibit.script(fixed=fixed).rstrip()}\n```"
        parts += [f'<details name="script"><summary>{title}</summary>', script, "</details>"]
    parts += [f"## {word['message']}", word["silent" if exhibit.silent else "ends"], exhibit.sections["Message"]]
    drawn = [f"{exhibit.name}-{state}.svg" for state in ("broken", "mended")]
    there = [(DOCS / "museum" / "pictures" / file).exists() for file in drawn]
    if any(there):
        cells = [
            f"![{file}]({up}museum/pictures/{file})" if has else "" for file, has in zip(drawn, there, strict=True)
        ]
        parts += [f"## {word['flow']}", f"{word['states']}\n|---|---|\n| {cells[0]} | {cells[1]} |"]
    parts += [f"## {word['why']}", said["why"], f"## {word['fix']}", said["fix"]]
    code = "\n".join(line.removeprefix("  ") for line in FIND.splitlines())
    found = [exhibit.sections["Find"]] if "Find" in exhibit.sections and not language else []
    parts += [f"## {word['find']}", *found, f"```python\n{code}\n```"]
    recipe = DOCS / "recipes" / f"{exhibit.recipe}.md"
    if exhibit.recipe and recipe.exists():
        link = f"[{exhibit.recipe}]({up}recipes/{exhibit.recipe}.md)"
        parts += [f"## {word['recipe']}", word["shows"].format(link)]
    if exhibit.threads:
        links = [thread.partition(" ") for thread in exhibit.threads]
        lines = [f"- [{short(url)}]({url}) {'' if language else remark}".rstrip() for url, _, remark in links]
        parts += [f"## {word['seen']}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def short(url: str) -> str:
    """``owner/name#12`` for a thread on GitHub."""
    owner, name, _, number = url.removeprefix("https://github.com/").split("/")[:4]
    return f"{owner}/{name}#{number}"
