"""The tour, act by act. Every figure is measured while it runs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from stopgrad.museum import exhibit, exhibits, plain
from stopgrad.tour.measure import SEEDS, Compared, Watched, ablated, line_of, source, watched
from stopgrad.tour.screen import STATES, Screen

EXHIBIT = "step_before_backward"
FAR = 1.0  # a generator whose points lie further from the data than the data's own spread is broken


def tour(screen: Screen, keep: Path | None = None) -> int:
    """All of it; the files go to ``keep``, or into a folder that is gone afterwards.

    Returns:
        0; 130 if Ctrl-C has ended it.

    Raises:
        ValueError: ``keep`` is there and not empty.
    """
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ValueError(f"--keep {keep}: is there already; choose a new or an empty folder")
    began = time.monotonic()
    try:
        with _folder(keep) as folder, _alone(folder):
            text = files("stopgrad.tour").joinpath("gan.diff").read_text(encoding="utf-8")
            leaky, mended = _leak(screen, text, folder), _mended(screen, text, folder)
            _distances(screen, {"before": leaky, "mended": mended})
            _arms(screen, text, folder, keep is not None)
            _museum(screen)
            _next(screen, keep, time.monotonic() - began)
    except KeyboardInterrupt:
        screen.progress("")
        screen.line()
        screen.line("stopped")
        return 130
    return 0


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="stopgrad-tour-") as folder:
            yield Path(folder).resolve()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """In the folder; with one thread, which is enough for so small networks, so that trainings go side by side."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)


def _leak(screen: Screen, text: str, folder: Path) -> Watched:
    script = source(text, mended=False)
    screen.heading("1  A GAN that trains without a word, and wrongly")
    screen.say("G makes points of noise, D tells them from the data, which lie around (3, 3). This is leaky.py:")
    screen.line()
    found = _run(screen, folder / "leaky.py", script)
    finding = next(f for f in found.report["findings"] if f["severity"] == "error")
    uncut = line_of(script, "fake = ")
    screen.code(script, marked=[uncut, finding["line"]])
    screen.command("python -m stopgrad run --every 0 leaky.py")
    _matrix(screen, found.report["matrix"], wrong=[("d_loss", "G")])
    screen.say(f"{finding['severity']}: leaky.py:{finding['line']}: {finding['message']}", "bad")
    screen.say(f"{finding['fix']}  [{finding['name']}]", indent="    ")
    screen.line()
    screen.say(
        f"D's loss reaches G, since nothing cuts what line {uncut} makes. The gradient that line {finding['line']}"
        " leaves in G is still there when G's own is added: G is trained to help D. Nothing crashed."
    )
    return found


def _mended(screen: Screen, text: str, folder: Path) -> Watched:
    script = source(text, mended=True)
    screen.heading("2  The fix")
    lines = text.splitlines()
    changed = [number for number, line in enumerate(lines) if line[:1] in ("-", "+")]
    screen.diff("\n".join(lines[changed[0] - 1 : changed[-1] + 1]))
    found = _run(screen, folder / "gan.py", script)
    screen.command("python -m stopgrad run --every 0 gan.py")
    _matrix(screen, found.report["matrix"])
    for cut in found.report["matrix"]["d_loss"]["G"]["cuts"]:
        screen.say(f"d_loss -> G: stopped by {cut}")
    errors = sum(f["severity"] == "error" for f in found.report["findings"])
    screen.say(f"errors: {errors}", "bad" if errors else "good")
    screen.line()
    return found


def _run(screen: Screen, file: Path, script: str) -> Watched:
    file.write_text(script, encoding="utf-8")
    screen.progress(f"{file.name} is trained, watched ...")
    found = watched(file)
    screen.progress("")
    return found


def _matrix(screen: Screen, matrix: Mapping[str, Any], wrong: list[tuple[str, str]] | None = None) -> None:
    """Losses down, parts across: which gets a gradient, and how much."""
    losses = list(matrix)
    parts = list(matrix[losses[0]])
    rows, styles = [["", *parts]], [["", *["bold" for _ in parts]]]
    for loss in losses:
        rows.append([loss])
        styles.append(["bold"])
        for part in parts:
            cell, leak = matrix[loss][part], (loss, part) in (wrong or [])
            arrow = "‖" if cell["state"] == "blocked" else "━━→" if cell["state"] == "open" else ""
            norm = f" {cell['norm']:.2g}" if cell["norm"] else ""
            rows[-1].append(f"{arrow} {cell['state']}{norm}{' LEAK' if leak else ''}".strip())
            styles[-1].append("mark" if leak else STATES[cell["state"]])
    screen.table(rows, styles)


def _distances(screen: Screen, runs: Mapping[str, Watched]) -> None:
    screen.say("How far the mean of G's points is from the data's, over 400 steps:")
    screen.line()
    top = max(max(run.distances) for run in runs.values())
    for name, run in runs.items():
        screen.curve(f"{name:8}", run.distances, top)


def _arms(screen: Screen, text: str, folder: Path, write: bool) -> None:
    script = source(text, mended=True)
    cut, clear = line_of(script, ".detach()"), line_of(script, "g_opt.zero_grad()")
    arms = {
        "no_grad": f"{cut}=no_grad",
        "freeze": f"{cut}=freeze",
        "leak, cleared in time": f"{cut}=none",
        "leak, cleared late": f"{cut}=none, {clear}=late",
    }
    screen.heading("3  What is a cut worth? Each is a switch")
    screen.say(
        f"Four other ways to run gan.py: line {cut} by other means, or not at all; and line {clear} moved. No file is"
        " touched. Arms share weights, noise and data; only the cut differs."
    )
    screen.line()
    options = [f"--seeds {SEEDS}", f'--broken "distance>{FAR:g}"', *(f'--arm "{n}: {c}"' for n, c in arms.items())]
    screen.command("python -m stopgrad ablate gan.py", options)
    given = ["--seeds", SEEDS, "--broken", f"distance>{FAR:g}"]
    for name, changes in arms.items():
        given += ["--arm", f"{name}: {changes}"]
    found = ablated(folder / "gan.py", given, screen.progress, write)
    screen.progress("")
    _verdicts(screen, found)


def _verdicts(screen: Screen, found: Compared) -> None:
    rows, styles = [["arm", "weights", "distance, 3 seeds", "verdict"]], [["bold"] * 4]
    first = found.weights[found.arms[0]["name"]]
    for arm in found.arms:
        name, verdict = arm["name"], arm["verdict"].replace("_", " ")
        ends = " ".join(f"{each[-1]:.2f}" for each in found.distances[name] if each)
        same = found.weights[name] == first
        rows.append(["detach (as it stands)" if verdict == "reference" else name, found.weights[name][0][:8], ends])
        rows[-1].append(verdict)
        styles.append(["", "good" if same else "bad", "", {"identical": "good", "broken": "bad"}.get(verdict, "")])
    screen.table(rows, styles)
    same = [arm for arm in found.arms[1:] if arm["verdict"] == "identical"]
    screen.say(f"{len(same) + 1} of {len(found.arms)} end with the same weights, bit for bit, in all seeds. In words:")
    screen.line()
    for arm in found.arms[1:]:
        screen.say(f"{arm['name']}: {arm['sentence']}", indent="    ")


def _museum(screen: Screen) -> None:
    shown = exhibit(EXHIBIT)
    screen.heading(f"4  A museum of {len(exhibits())} failures, each with a script to run")
    screen.command(f"python -m stopgrad museum {EXHIBIT}")
    screen.say(f"{shown.title}. {plain(shown.summary)}")
    screen.line()
    screen.diff("\n".join(shown.diff.splitlines()[6:]))
    for fixed in (False, True):
        error = shown.run(fixed=fixed)
        said = "passes" if error is None else f"{type(error).__name__}: {str(error).splitlines()[0].split('; ')[0]}"
        screen.say(f"{'with' if fixed else 'without'} the fix: {said}", "good" if error is None else "bad")
    screen.line()
    screen.say(f"Why: {' '.join(shown.sections['Why'].split())}")
    screen.line()
    screen.say("From an error in front of you to its page: python -m stopgrad explain, with the message or in a pipe.")


def _next(screen: Screen, keep: Path | None, seconds: float) -> None:
    screen.heading("5  What next")
    runner = importlib.util.find_spec("hydra") is not None
    for words, why in (
        ("run my_train.py", "your own script, unchanged: which loss reaches what, and what is wrong"),
        ("ablate my_train.py", "an arm without each of its cuts, compared"),
        ("propose --help", "the smallest edit that stops a loss from reaching a part"),
        ("audit my.py:step", "a step of your own, by losses and parts, in a test or before a training"),
        ("museum", "all failures; add a name to see one"),
        ("new my_project --from gan", "a project of recipes" + ("" if runner else '; needs "stopgrad[recipes]"')),
    ):
        screen.line(screen.paint(f"python -m stopgrad {words}", "bold"))
        screen.say(why, indent="    ")
    screen.line()
    kept = f"The scripts and the comparison are in {keep}" if keep else "--keep FOLDER leaves the scripts with you"
    screen.say(f"{kept}. Every figure was measured here: {seconds:.0f} s, torch {torch.__version__}.", "soft")
