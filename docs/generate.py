"""The tables that are made, not written: README's row for each recipe, docs/recipes/index.md, docs/which.md's second.

    python docs/generate.py                        write them
    python docs/generate.py --check                write nothing; name what is stale, and end with 1
    python docs/generate.py --measured SWEEP...    first keep what each sweep measured, in docs/measured/COMPARE.json

They come from what recipes declare in their source, from configs/, and from docs/measured/: of each comparison a digest
of the sweep ``python train.py -m compare=NAME``, small enough to be read in a diff.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stopgrad.compare import compare
from stopgrad.compare.read import Run
from stopgrad.compare.words import number
from stopgrad.cuts.strategies import spelling
from stopgrad.runner.declared import Declaration, declared_in, recipe_files
from stopgrad.runner.shelf import parsed

ROOT = Path(__file__).parents[1]
README, INDEX, MEASURED = (ROOT / path for path in ("README.md", "docs/recipes/index.md", "docs/measured"))
WHICH = ROOT / "docs" / "which.md"
START, END = "<!-- recipes: made by python docs/generate.py -->\n", "<!-- end of recipes -->"
ELSEWHERE = re.compile(r"(compare|arm|cache|logger|hydra\..*|callbacks\.fingerprints\.window)=|seed=\d+$")
OF = "override /recipe"
MARKS = {"saved_bytes": "saved bytes", "graph_nodes": "graph nodes"}
Digest = dict[str, Any]


# ---- what was measured


def digest(folder: Path) -> Digest:
    """What the sweep in ``folder`` has measured of one comparison.

    Raises:
        ValueError: it is no such sweep, or it has not ended; one line.
    """
    compared = compare([folder])
    content, runs = compared.content, compared.found.runs
    of = runs[0].result.get("compare")
    if not of or any((run.result.get("compare") or {}).get("name") != of["name"] for run in runs):
        raise ValueError(f"{folder}: no sweep over one comparison; make it by python train.py -m compare=NAME")
    seeds, names = content["seeds"], [content["reference"], *(n for n in of["arms"] if n != content["reference"])]
    ended = {(run.arm, run.seed) for run in runs if run.result["status"] != "interrupted"}
    missing = [f"{name}/seed-{seed}" for name in names for seed in seeds if (name, seed) not in ended]
    if missing:
        raise ValueError(f"{folder}: no end of {', '.join(missing)}; run the sweep again with hydra.sweep.dir={folder}")
    arms = {arm["name"]: arm for arm in content["arms"]}
    letters = weight_letters(names, arms)
    return {
        "compare": of["name"],
        "command": command(of["name"], runs, seeds),
        "commit": ", ".join(sorted({str(run.result["commit"])[:12] for run in runs})),
        "versions": runs[0].result["versions"],
        "threads": runs[0].result["threads"],
        "seeds": seeds,
        "runs": len(runs),
        "seconds": round(sum(run.result["seconds"] for run in runs)),
        "arms": {
            name: arm_digest(arms[name], [run for run in runs if run.arm == name], content) | {"weights": letters[name]}
            for name in names
        },
    }


def arm_digest(arm: Mapping[str, Any], runs: Sequence[Run], content: Mapping[str, Any]) -> Digest:
    """One arm: what it changes, its verdict, how it breaks the contract, and its metrics by seed."""
    config = OmegaConf.to_container(OmegaConf.load(runs[0].folder / "config.yaml"))
    assert isinstance(config, dict)
    broken = dict.fromkeys(run.result["contract"]["broken"] for run in runs)
    values = {n: arm["metrics"][n]["values"] for n in content["metrics_declared"] if n in arm["metrics"]}
    reasons = arm["because"] if arm["verdict"] in ("broken", "different_training") else []
    return {
        "changes": overrides(config["compare"]["arms"][arm["name"]]),
        "verdict": arm["verdict"],
        "message": arm["message"],
        "told_by": [n for n in values if any(re.match(rf"(seed \d+: )?{n} ", reason) for reason in reasons)],
        "contract": "; ".join(filter(None, broken)),
        "metrics": {n: [rounded(of.get(seed)) for seed in content["seeds"]] for n, of in values.items()},
        **{key: rounded(arm["cost"][f"{key}_ratio"], 3) for key in MARKS},
    }


def weight_letters(names: Sequence[str], arms: Mapping[str, Any]) -> dict[str, str]:
    """The same letter for arms that end with the same weights in every seed; none where a run raised."""
    letters: dict[str, str] = {}
    for name in names:
        known = [letters[other] for other in arms[name]["same_weights_as"] if other in letters]
        new = chr(ord("A") + len({*letters.values()} - {""}))
        letters[name] = "" if arms[name]["verdict"] == "raised" else known[0] if known else new
    return letters


def overrides(arm: Mapping[str, Any]) -> str:
    """What an arm changes, as on a command line: ``stop.fakes=none stop.zero_grad=late``."""

    def flat(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, Mapping):
            for key, child in node.items():
                yield from flat(child, f"{path}.{key}".lstrip("."))
        else:
            yield f"{path}={node if isinstance(node, str) else json.dumps(node)}"

    return " ".join(flat(arm, ""))


def command(name: str, runs: Sequence[Run], seeds: Sequence[int]) -> str:
    """The command of the sweep: with what was overridden, but for where things are kept."""
    said = ",".join(map(str, seeds))
    usual = str(compare_config(name)["hydra"]["sweeper"]["params"]["seed"])
    given = [each for each in runs[0].result["replay"]["arguments"][1:] if not ELSEWHERE.match(each)]
    return " ".join([f"python train.py -m compare={name}", *given, *([] if said == usual else [f"seed={said}"])])


def rounded(value: float | None, digits: int = 5) -> float | str | None:
    if value is None or not math.isfinite(value):
        return value if value is None else str(value)
    return float(f"{value:.{digits}g}")


def written(found: Digest) -> str:
    """JSON with a line for each key and for each arm, so that a diff shows what has changed."""
    keys = [f' "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in found.items() if key != "arms"]
    arms = [f'  "{name}": {json.dumps(arm, ensure_ascii=False)}' for name, arm in found["arms"].items()]
    return "{\n" + ",\n".join([*keys, ' "arms": {\n' + ",\n".join(arms)]) + "\n }\n}\n"


def measured(name: str) -> Digest | None:
    file = MEASURED / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def doubts() -> list[str]:
    """Digests that no longer fit: of a comparison, an arm or a verdict that the configs say otherwise."""
    found, there = [], compares()
    for file in sorted(MEASURED.glob("*.json")):
        if file.stem not in there:
            found.append(f"{shown(file)}: there is no configs/compare/{file.name.replace('json', 'yaml')}")
            continue
        said = compare_config(file.stem)["compare"]
        arms = json.loads(file.read_text())["arms"]
        was, now = ({k: v["changes"] for k, v in arms.items()}, {k: overrides(v) for k, v in said["arms"].items()})
        found += [f"{shown(file)}: measured other arms: {n}" for n in {**now, **was} if was.get(n) != now.get(n)]
        for name, verdict in said.get("expect", {}).items():
            if name in arms and arms[name]["verdict"] != verdict:
                found.append(f"{shown(file)}: {name} came out {arms[name]['verdict']}; expected was {verdict}")
    return found


# ---- what is declared


def compare_config(name: str) -> dict[str, Any]:
    return parsed((ROOT / "configs" / "compare" / f"{name}.yaml").read_text())


def compares() -> dict[str, str]:
    """The recipe's config that each comparison is of."""
    found = {}
    for file in sorted((ROOT / "configs" / "compare").glob("*.yaml")):
        found[file.stem] = next(each[OF] for each in compare_config(file.stem)["defaults"] if OF in each)
    return found


def recipes() -> Iterator[tuple[str, list[str], list[str], Declaration]]:
    """Of each recipe: its file, its configs, their comparisons, and what it declares."""
    of = compares()
    for name, configs in recipe_files(ROOT / "configs").items():
        mine = [compare for compare in of if of[compare] in configs]
        order = sorted(mine, key=lambda compare: (configs.index(of[compare]), compare not in configs, compare))
        yield name, configs, order, declared_in(ROOT / "recipes" / f"{name}.py")


def bare(sentence: str) -> str:
    """For a cell of a table."""
    return sentence.removesuffix(".")


# ---- README's rows


def readme_rows() -> str:
    lines = ["| recipe | pattern | without it | measured |", "|---|---|---|---|"]
    for name, _, mine, declared in recipes():
        switch, found = next(filter(None, map(effect, mine)), (None, "not measured"))
        without = declared.without.get(switch or next(iter(declared.without), ""), "")
        lines.append(f"| [`{name}`](docs/recipes/{name}.md) | {bare(declared.pattern)} | {without} | {found} |")
    return "\n".join(lines) + "\n"


def which_rows() -> str:
    """A row for each boundary: the method, what is cut by default or must stay live, and what happens otherwise."""
    lines = ["| method | what is cut | what happens otherwise | recipe |", "|---|---|---|---|"]
    for name, _, _, declared in recipes():
        for boundary, legal in declared.boundaries.items():
            cut = legal[0] != "none"
            what = f"`{boundary}`: {f'by `{legal[0]}`' if cut else 'nothing, it stays **live**'}"
            link = f"[`{name}`](recipes/{name}.md)"
            lines.append(f"| {declared.paper} | {what} | {bare(declared.without.get(boundary, ''))} | {link} |")
    return "\n".join(lines) + "\n"


def effect(compare: str) -> tuple[str | None, str] | None:
    """The first arm that a metric tells from the reference: the switch that it flips, and how far the median moves."""
    found = measured(compare)
    if found is None:
        return None
    reference = next(iter(found["arms"].values()))
    for name, arm in found["arms"].items():
        for metric in arm["told_by"][:1]:
            before, after = (median(each["metrics"][metric]) for each in (reference, arm))
            if before == after:
                continue
            switch = re.match(r"stop\.(\w+)=", arm["changes"])
            said = f"`{name}`: {metric} {before} → {after}, {words(arm['verdict'])} ({cost(found)})"
            return switch and switch[1], said
    return None


def median(values: Sequence[float | str]) -> str:
    return number(statistics.median(map(float, values)))


def words(verdict: str) -> str:
    return verdict.replace("_", " ")


def cost(found: Digest) -> str:
    return f"{found['runs']} runs, {found['seconds'] / found['runs']:.2g} s each"


# ---- docs/recipes/index.md


def index() -> str:
    lines = [
        "# All recipes",
        "",
        "What every recipe declares of its boundaries and switches, and what every comparison has measured. Made by",
        "`python docs/generate.py` from the recipes' source and from `docs/measured/`; a test fails where it is stale.",
        "What each strategy does: [Design](../design.md#boundary). How arms are judged, and on what figures depend:",
        "[the comparison](../comparison.md).",
        "",
        "| recipe | pattern | paper |",
        "|---|---|---|",
    ]
    found = list(recipes())
    lines += [f"| [{name}](#{name}) | {bare(of.pattern)} | {of.paper} |" for name, _, _, of in found]
    for name, configs, mine, declared in found:
        runs = ", ".join(f"`recipe={config}`" for config in configs)
        title, said = declared.summary.removesuffix(declared.pattern).rstrip(": "), declared.pattern
        lines += ["", f"## `{name}`", "", f"[{title}]({name}.md): {said}", ""]
        lines += [f"{runs}. {declared.paper}.", *choices(declared)]
        for each in mine:
            lines += ["", *comparison(each)]
    return "\n".join(lines) + "\n"


def choices(declared: Declaration) -> list[str]:
    """The table of boundaries and switches."""
    lines = ["", "| | choices, the default first | without it, or with the wrong choice |", "|---|---|---|"]
    for name, legal in {**declared.boundaries, **declared.switches}.items():
        kinds = map(spelling, legal) if name in declared.boundaries else legal
        said = " ".join(f"`{kind}`" for kind in kinds)
        needs = declared.needs.get(f"stop.{name}", [])
        said += f"; flipped only with {' '.join(f'`{n}`' for n in needs)}" if needs else ""
        lines.append(f"| stop.{name} | {said} | {declared.without.get(name, '')} |")
    refused = [f"`{override}` is refused: {reason}." for override, reason in declared.refuses.items()]
    return [*lines, *(["", *refused] if refused else [])]


def comparison(name: str) -> list[str]:
    """What one comparison has measured, arm by arm."""
    found = measured(name)
    heading = [f"### `compare={name}`", ""]
    if found is None:
        return [*heading, f"`python train.py -m compare={name}`: not measured."]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if name != "stopgrad")
    metrics = list(dict.fromkeys(metric for arm in found["arms"].values() for metric in arm["metrics"]))
    columns = ["arm", "changes", "verdict", *metrics, "contract", "weights", *MARKS.values()]
    seeds = f"seed{'s' if len(found['seeds']) > 1 else ''} {', '.join(map(str, found['seeds']))}"
    lines = [
        *heading,
        f"`{found['command']}`: {seeds}; {cost(found)} on {threads(found['threads'])}; {versions};",
        f"commit {found['commit']}.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    expect = compare_config(name)["compare"].get("expect", {})
    for arm, is_ in found["arms"].items():
        wanted = expect.get(arm, is_["verdict"])
        verdict = words(is_["verdict"]) + ("" if wanted == is_["verdict"] else f" (expected {words(wanted)})")
        values = [" ".join(map(figure, is_["metrics"].get(metric, []))) for metric in metrics]
        contract = "" if is_["message"] else is_["contract"] or "kept"
        ratios = ["" if is_[key] is None else f"{is_[key]:.2f}" for key in MARKS]
        cells = [arm, is_["changes"], verdict, *values, contract, is_["weights"], *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def figure(value: float | str | None) -> str:
    return value if isinstance(value, str) else number(value)


# ---- files


def pages() -> dict[Path, str]:
    """What each generated file must hold."""
    rows = {README: readme_rows(), WHICH: which_rows()}
    return {file: between_marks(file.read_text(), text) for file, text in rows.items()} | {INDEX: index()}


def between_marks(page: str, text: str) -> str:
    before, _, rest = page.partition(START)
    return before + START + text + END + rest.partition(END)[2]


def stale() -> list[str]:
    """The files that do not hold what they must."""
    return [shown(file) for file, text in pages().items() if not file.exists() or file.read_text() != text]


def shown(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def main(arguments: list[str] | None = None) -> int:
    """Status 0; 1 where something is stale; 2 where a sweep cannot be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measured", nargs="+", type=Path, default=[], metavar="SWEEP")
    options = parser.parse_args(arguments)
    if options.check:
        found = [f"{file}: stale; run python docs/generate.py" for file in stale()] + doubts()
        print("\n".join(found) or "fresh")
        return 1 if found else 0
    try:
        digests = [digest(folder) for folder in options.measured]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    MEASURED.mkdir(exist_ok=True)
    for each in digests:
        (MEASURED / f"{each['compare']}.json").write_text(written(each))
    for file, text in pages().items():
        file.write_text(text)
    for each in doubts():
        print(f"doubtful: {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
