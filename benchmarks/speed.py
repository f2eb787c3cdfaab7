"""Everything that docs/speed.md states, in one command: each benchmark in turn, then the page.

    python benchmarks/speed.py                 # all, half an hour on a quiet core: pip install -e '.[benchmarks]'
    python benchmarks/speed.py gan startup     # these alone; the others keep their figures
    python benchmarks/speed.py --page          # the page again, from docs/speed.json

Each figure is a ratio of two programs measured in turn in one run, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE, FILE = ROOT / "docs" / "speed.md", ROOT / "docs" / "speed.json"
START, END = "<!-- {}: made by python benchmarks/speed.py -->\n", "<!-- end of {} -->"
LIBRARIES = ("torch", "lightning", "hydra-core", "stable-baselines3")
PARTS = {  # what runs, by name
    "gan": "gan.py",
    "gan_simple": "gan.py --simple",
    "actor_critic": "actor_critic.py",
    "td3": "td3.py",
    "finetune": "finetune.py",
    "audit": "audit.py",
    "startup": "startup.py",
    "sweep": "sweep.py --repeats 2",
    "compiled": "compiled.py --steps 150 --repeats 3",
    "step": "step.py --repeats 2",
}
Found = Mapping[str, Any]
AT_MOST, AT_LEAST = "≤", "≥"


class Row(NamedTuple):
    """A bar: what it is about, which part measures it and where in its JSON, and what is asked."""

    work: str
    part: str
    figure: Callable[[Found], Mapping[str, float]]  # median, min, max
    asked: str
    bar: float

    def met(self, median: float) -> bool:
        return median <= self.bar if self.asked == AT_MOST else median >= self.bar


def at(*path: str) -> Callable[[Found], Mapping[str, float]]:
    """What stands at this path of a benchmark's JSON."""

    def look(found: Any) -> Mapping[str, float]:
        for key in path:
            found = found[key]
        return found

    return look


ROWS = [
    Row("GAN recipe over the plain loop, WGAN-GP", "gan", at("recipe over plain"), AT_MOST, 1.04),
    Row("GAN recipe over the plain loop, simple", "gan_simple", at("recipe over plain"), AT_MOST, 1.10),
    Row("PPO to 475 on CartPole, times sooner than SB3's zoo", "actor_critic", at("times_sooner"), AT_LEAST, 6.0),
    Row("the same, the slowest seed", "actor_critic", at("least_sooner"), AT_LEAST, 4.0),
    Row("PPO, the zoo's settings, steps a second over SB3", "actor_critic", at("same_settings"), AT_LEAST, 1.5),
    Row("TD3, updates a second over SB3", "td3", at("over_sb3"), AT_LEAST, 1.25),
    Row("cached fine-tuning over the head alone, plain", "finetune", at("ratios", "cached_over_plain"), AT_MOST, 2.0),
    Row("the same, 31 updates a step", "finetune", at("ratios", "several_over_plain"), AT_MOST, 1.2),
    Row("audited step over a plain, transformer", "audit", at("transformer_12", "ratios", "audited"), AT_MOST, 1.45),
    Row("the same, ResNet-18", "audit", at("resnet_18", "ratios", "audited"), AT_MOST, 1.45),
    Row(
        "audited batch in training, transformer", "audit", at("transformer_12", "ratios", "in training"), AT_MOST, 1.06
    ),
    Row("the same, ResNet-18", "audit", at("resnet_18", "ratios", "in training"), AT_MOST, 1.06),
    Row("`--help` over bare Hydra", "startup", at("--help", "over bare Hydra"), AT_MOST, 1.3),
    Row("`--cfg job` over bare Hydra", "startup", at("--cfg job", "over bare Hydra"), AT_MOST, 1.15),
    Row("33 runs of 200 steps: share that is no run's", "sweep", at("beside"), AT_MOST, 0.15),
    Row("the same by two processes, times sooner", "sweep", at("sooner"), AT_LEAST, 1.8),
]


def machine() -> dict[str, str]:
    """What the figures were made on."""
    names = [line.partition(":")[2].strip() for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")]
    found = {"processor": names[0] if names else platform.processor(), "cores": str(os.cpu_count())}
    found["python"] = platform.python_version()
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "absent"
    return found


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def measure(part: str) -> dict[str, Any]:
    """Run one benchmark."""
    command = [sys.executable, *f"{ROOT / 'benchmarks' / PARTS[part]} --json".split()]
    started, load = time.perf_counter(), os.getloadavg()[0]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ran.returncode:
        raise SystemExit(f"benchmarks/{PARTS[part]} ended with {ran.returncode}:\n{ran.stderr}")
    return {
        "command": f"python benchmarks/{PARTS[part]}",
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.perf_counter() - started),
        "load": round(load, 1),
        "machine": machine(),
        "found": json.loads(ran.stdout.strip().splitlines()[-1]),
    }


def bars(parts: Mapping[str, Any]) -> Iterator[str]:
    """The table of the bars."""
    yield from (
        "| work | bar | median | least to greatest (audits: quartiles) | met | by |",
        "|---|---|---|---|---|---|",
    )
    for row in ROWS:
        if row.part not in parts:
            continue
        found, command = row.figure(parts[row.part]["found"]), parts[row.part]["command"]
        ends = ("min", "max") if "min" in found else ("quartile_1", "quartile_3")
        median, least, greatest = (f"{found[key]:.3g}" for key in ("median", *ends))
        met = "yes" if row.met(found["median"]) else "**no**"
        yield f"| {row.work} | {row.asked} {row.bar:g} | {median} | {least} to {greatest} | {met} | `{command}` |"


def recipes(parts: Mapping[str, Any]) -> Iterator[str]:
    """The table of every recipe over its plain script."""
    if "step" not in parts:
        return
    rows: Mapping[str, Any] = parts["step"]["found"]
    met = sum(row["met"] for row in rows.values())
    yield f"`{parts['step']['command']}`: {met} of {len(rows)} recipes are within the bar."
    yield from ("", "| recipe | plain, us a step | recipe | over plain | us over plain and a bare Trainer | met |")
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        plain, ours, added = (f"{row[f'{key}_us']['median']:,.0f}" for key in ("plain", "recipe", "added"))
        ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
        yield f"| `{name}` | {plain} | {ours} | {ratio} | {added} | {'yes' if row['met'] else 'no'} |"


def compiled(parts: Mapping[str, Any]) -> Iterator[str]:
    """The table of what compiling makes of a step."""
    if "compiled" not in parts:
        return
    yield f"`{parts['compiled']['command']}`: a compiled step over an eager one, and the seconds of compiling."
    yield from ("", "| run | eager, ms a step | `compile=true` | seconds | `compile=update` | seconds |")
    yield "|---|---|---|---|---|---|"
    for work in parts["compiled"]["found"]["works"]:
        cells = [f"`{work['work']}`", f"{work['milliseconds_a_step']['eager']['median']:.2f}"]
        for way, ratio in work["over_eager"].items():
            cells += ["{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio), f"{work['compiling'][way]:.0f}"]
        yield f"| {' | '.join(cells)} |"


def how(parts: Mapping[str, Any]) -> Iterator[str]:
    """Machine, versions, dates and costs."""
    for text in dict.fromkeys(", ".join(f"{k} {v}" for k, v in part["machine"].items()) for part in parts.values()):
        yield f"{text}."
    yield from ("", "| benchmark | when | seconds | load as it began |", "|---|---|---|---|")
    for part in parts.values():
        seconds = part["seconds"] or "not kept"
        yield f"| `{part['command']}` | {part['date']} | {seconds} | {part['load']} |"


SECTIONS = {"bars": bars, "recipes": recipes, "compiled": compiled, "machine": how}


def written(page: str, parts: Mapping[str, Any]) -> str:
    """The page with these figures between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    ordered = {name: parts[name] for name in PARTS if name in parts}
    for name, lines in SECTIONS.items():
        start, end = START.format(name), END.format(name)
        before, found, rest = page.partition(start)
        if not found or end not in rest:
            raise ValueError(f"{PAGE.name}: lacks {start.strip()} or {end}")
        text = "".join(f"{line}\n" for line in lines(ordered))
        page = before + start + text + end + rest.partition(end)[2]
    return page


def measured() -> dict[str, Any]:
    """What docs/speed.json holds, by part."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"part={unknown[0]}: choose one of {', '.join(PARTS)}")
    parts = measured()
    for part in [] if options.page else options.parts or PARTS:
        parts[part] = measure(part)
        FILE.write_text(json.dumps(parts, indent=1) + "\n")
        print(f"{part}: {parts[part]['seconds']} s", flush=True)
    PAGE.write_text(written(PAGE.read_text(), parts))


if __name__ == "__main__":
    main()
