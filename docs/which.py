"""The parts of docs/which.md, in both languages, that come from the recipes' declarations and from docs/decision.py."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path

from decision import START, WAYS, Leaf, Question

from stopgrad.runner.declared import Declaration

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHINESE = Path(__file__).parent / "zh" / "without.toml"
WORDS = {
    "ways": ("| I want ... | use | not |", "| 我想…… | 用 | 不要用 |"),
    "rows": (
        "| method | what is cut | what happens otherwise | recipe |",
        "| 方法 | 切断什么 | 否则会怎样 | 配方（recipe） |",
    ),
    "cut": ("by `{}`", "用 `{}`"),
    "live": ("nothing, it stays **live**", "不切断，**保留梯度**"),
    "is cut": ("cut by `{}`", "用 `{}` 切断"),
    "is live": ("not cut, it stays **live**", "不切断，**保留梯度**"),
    "is set": ("`{}`", "`{}`"),
    "use": ("Use {}.", "做法：{}。"),
    "unlike": (" Not {}.", "不要：{}。"),
    "otherwise": (" Otherwise: {}.", "否则：{}。"),
    "again": ("Start again", "从头开始"),
    "colon": (": ", "："),
    "stop": (".", "。"),
}
Declared = Mapping[str, Declaration]


def ways(language: int) -> str:
    """The table of ways to cut."""
    lines = [WORDS["ways"][language], "| --- | --- | --- |"]
    for way in WAYS.values():
        lines.append(f"| {way.want[language]} | {way.use[language]} | {way.unlike[language]} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def rows(declared: Declared, language: int) -> str:
    """A row for each boundary: the method, what is cut by default or must stay live, and what happens otherwise."""
    lines = [WORDS["rows"][language], "|---|---|---|---|"]
    for name, of in declared.items():
        for boundary in of.boundaries:
            without = said(of, boundary, language)
            what = f"`{boundary}`{WORDS['colon'][language]}{default(of, boundary, language)}"
            lines.append(f"| {of.paper} | {what} | {without} | {link(name, language)} |")
    return "\n".join(lines) + "\n"


def default(of: Declaration, name: str, language: int, verb: str = "") -> str:
    """What a boundary does by default; of a switch, its default."""
    if name not in of.boundaries:
        return WORDS[f"{verb}set"][language].format(of.switches[name][0])
    first = of.boundaries[name][0]
    cut = first != "none"
    return WORDS[verb + ("cut" if cut else "live")][language].format(first)


def said(of: Declaration, name: str, language: int) -> str:
    """What happens without it; in English where there is no Chinese for that sentence."""
    english = of.without.get(name, "").removesuffix(".")
    return chinese().get(english, english) if language else english


@functools.cache
def chinese() -> dict[str, str]:
    return tomllib.loads(CHINESE.read_text(encoding="utf-8"))


def untranslated(declared: Declared) -> list[str]:
    """Sentences that have no Chinese, and Chinese of sentences that are gone."""
    english = {said(of, name, 0) for of in declared.values() for name in of.boundaries} - {""}
    english |= {said(declared[each.partition(".")[0]], each.partition(".")[2], 0) for each in named()} - {""}
    return sorted(english ^ chinese().keys())


def named() -> list[str]:
    """The boundaries and switches under the leaves."""
    return [each for leaf in START.leaves() for each in leaf.boundaries]


def link(recipe: str, language: int) -> str:
    return f"[`{recipe}`]({'../' * language}recipes/{recipe}.md)"


def decision(declared: Declared, language: int) -> str:
    """The questions as nested ``<details>``, which docs/static/site.js makes into buttons.

    Raises:
        ValueError: a boundary stands under no leaf, or a leaf names what no recipe or no way is; one line.
    """
    known = {f"{recipe}.{name}" for recipe, of in declared.items() for name in of.boundaries}
    switches = {f"{recipe}.{name}" for recipe, of in declared.items() for name in of.switches}
    problems = [f"no leaf leads to {each}" for each in sorted(known - {*named()})]
    problems += [f"no recipe declares {each}" for each in named() if each not in known | switches]
    problems += [f"there is no way {way!r}" for leaf in START.leaves() for way in leaf.ways if way not in WAYS]
    if problems:
        raise ValueError(f"docs/decision.py: {'; '.join(problems)}")

    def parts(of: Question | Leaf) -> list[str]:
        if isinstance(of, Leaf):
            return ["\n".join(entries(of))]
        found = [f"**{of.ask[language]}**"]
        for answer, then in of.answers:
            found += [f"<details><summary>{answer[language]}</summary>", *parts(then), "</details>"]
        return found

    def entries(of: Leaf) -> list[str]:
        found = []
        for way in map(WAYS.__getitem__, of.ways):
            unlike = WORDS["unlike"][language].format(way.unlike[language]) if way.unlike[language] else ""
            found.append(f"- {WORDS['use'][language].format(way.use[language])}{unlike}")
        for recipe, name in (each.split(".") for each in of.boundaries):
            of_recipe, without = declared[recipe], said(declared[recipe], name, language)
            line = f"- {link(recipe, language)} `stop.{name}`{WORDS['colon'][language]}"
            line += default(of_recipe, name, language, "is ") + WORDS["stop"][language]
            found.append(line + (WORDS["otherwise"][language].format(without) if without else ""))
        return found

    open_, close = f'<div class="decision" data-again="{WORDS["again"][language]}">', "</div>"
    return "\n\n".join([open_, *parts(START), close]) + "\n"
