"""Judge the claims and make the pages from them: ``python -m conf_tests.semantics.page`` writes both languages.

A row whose code does not print what the table says cannot be judged, so it never reaches a page.
"""

# ruff: noqa: E501  (a sentence is a line)

from __future__ import annotations

import doctest
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .claims import CLAIMS, DIFFERENCES, Claim

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {0: DOCS / "semantics.md", 1: DOCS / "zh" / "semantics.md"}
VERDICTS = {"true": ("true", "对"), "false": ("**false**", "**错**"), "half true": ("**half true**", "**半对**")}


def examples(code: str, globs: dict[str, Any]) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(code, globs, "claim", None, 0)


def run(test: doctest.DocTest) -> str:
    """Run the examples; return what differs from the table, or an empty string."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=report.append, clear_globs=False)
    return "".join(report)


def judge(claim: Claim) -> str:
    """Run the claim's code and say ``true``, ``false`` or ``half true``.

    Raises:
        AssertionError: torch prints something else than the table.
    """
    torch.manual_seed(0)
    test = examples(claim.code, {"torch": torch, "nn": torch.nn})
    difference = run(test)
    if difference:
        raise AssertionError(f"row {claim.number}\n{difference}")
    globs = test.globs | {"errors": [e.exc_msg for e in test.examples if e.exc_msg]}
    held = [bool(eval(part, globs)) for part in claim.holds]
    return "true" if all(held) else "half true" if any(held) else "false"


TEXT = {
    "title": ("# What stops a gradient?", "# 什么会停止梯度？"),
    "intro": (
        "Sentences that tutorials say about `detach`, `detach_`, `.data`, `no_grad`, `inference_mode`, `clone`, `.item()` and\n"
        "`.numpy()`, each tried. The verdicts are not opinions: the code under each row is run by the tests, prints what\n"
        "stands here, and decides. ([中文版](zh/semantics.md))",
        "关于 `detach`、`detach_`、`.data`、`no_grad`、`inference_mode`、`clone`、`.item()` 和 `.numpy()`，教程中常见的说法逐条验证。\n"
        "结论不是观点：每条下面的代码由测试运行，输出与此处完全一致，结论由它得出。（[English](../semantics.md)）",
    ),
    "wrong": ("## The sentences that are wrong", "## 错误的说法"),
    "right": ("## The sentences that are right", "## 正确的说法"),
    "rows": ("## Every row, with its code", "## 逐条代码"),
    "head": ("| It is said | Verdict | What is so |", "| 常见说法 | 结论 | 实际情况 |"),
    "so": ("What is so: ", "实际情况："),
    "also": ("Also: ", "补充："),
    "origin": ("Where it comes from: ", "来源："),
    "versions": ("## What differs between versions of torch", "## 不同 torch 版本的差异"),
    "tried": (
        "Every row was run on torch 2.8 and 2.13 and gives the same verdict. These differ:",
        "所有条目均在 torch 2.8 与 2.13 上运行，结论相同。下列行为不同：",
    ),
    "vhead": ("| | 2.8 | 2.13 |", "| | 2.8 | 2.13 |"),
    "made": (
        "<!-- made by conf_tests/semantics/page.py from conf_tests/semantics/claims.py: edit the table, not this page -->",
        "<!-- 由 conf_tests/semantics/page.py 根据 conf_tests/semantics/claims.py 生成：请修改该表，不要修改本页 -->",
    ),
}


def table(rows: Iterable[tuple[Claim, str]], lang: int) -> list[str]:
    lines = [TEXT["head"][lang], "| --- | --- | --- |"]
    for claim, verdict in rows:
        cells = (
            f"[{claim.number}.](#row-{claim.number}) {claim.says[lang]}",
            VERDICTS[verdict][lang],
            claim.truth[lang],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def detail(claim: Claim, verdict: str, lang: int) -> list[str]:
    lead = TEXT["also" if verdict == "true" else "so"][lang]
    lines = [
        f'<a id="row-{claim.number}"></a>',
        "",
        f"### {claim.number}. {claim.says[lang]}",
        "",
        VERDICTS[verdict][lang],
        "",
        "```pycon",
        claim.code.strip(),
        "```",
        "",
        lead + claim.truth[lang],
        "",
    ]
    return [*lines, TEXT["origin"][lang] + claim.origin[lang], ""] if claim.origin[lang] else lines


def render(lang: int, verdicts: dict[int, str]) -> str:
    """The page in English (0) or Chinese (1)."""
    judged = [(claim, verdicts[claim.number]) for claim in CLAIMS]
    wrong = [row for row in judged if row[1] != "true"]
    right = [row for row in judged if row[1] == "true"]
    lines = [TEXT["made"][lang], "", TEXT["title"][lang], "", TEXT["intro"][lang], ""]
    lines += [TEXT["wrong"][lang], "", *table(wrong, lang), ""]
    lines += [TEXT["right"][lang], "", *table(right, lang), ""]
    lines += [TEXT["rows"][lang], ""]
    for claim, verdict in judged:
        lines += detail(claim, verdict, lang)
    lines += [TEXT["versions"][lang], "", TEXT["tried"][lang], "", TEXT["vhead"][lang], "| --- | --- | --- |"]
    lines += [f"| {d.what[lang]} | `{d.says['2.8']}` | `{d.says['2.13']}` |" for d in DIFFERENCES]
    return "\n".join(lines) + "\n"


def main() -> None:
    verdicts = {claim.number: judge(claim) for claim in CLAIMS}
    for lang, path in PAGES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(lang, verdicts), encoding="utf-8")
    for verdict in VERDICTS:
        print(f"{sum(v == verdict for v in verdicts.values()):3} {verdict}")


if __name__ == "__main__":
    main()
