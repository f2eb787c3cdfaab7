"""What a comparison costs: to write one of 33 arms x 3 seeds, to open its page, and to keep its fingerprints.

python benchmarks/comparison.py

The runs are made up, as large as real ones: a hundred fingerprints of 30 tensors, twelve curves of 200 points, and
for each a flow picture. The page is opened in a headless Chromium, where there is one with its driver: until it is
loaded and drawn, and then until a click has drawn all arms. The share of fingerprints is the time spent in their
callback over the whole time of fit, in a real run of the default recipe.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter

from stopgrad import Boundary, audit
from stopgrad.compare.fingerprint import FILE, FINE, SKETCH, Fingerprints
from stopgrad.flow.routes import flow_record

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
GROUPS = ("generator", "discriminator", "average")
CELL = {"state": "open", "norm": 1.0, "cuts": []}


def picture() -> dict[str, Any]:
    """``flow.json`` of a chain of parts, as many as the picture of a recipe may have."""
    model = nn.ModuleDict({f"part{k}": nn.Linear(4, 4) for k in range(12)})
    with audit(model, draw=True) as a:
        value = torch.ones(2, 4)
        for k, part in enumerate(model.values()):
            value = Boundary(f"after{k}", "none")(part, value)
        a.loss("d_loss", value.sum())
        a.loss("g_loss", value.square().sum())
    return flow_record(a)


RECORD = picture()


def write_run(folder: Path, arm: int, seed: int) -> None:
    """A finished run of arm ``arm`` with random figures."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1000 * arm + seed)
    names = [f"{group}.{k}.weight" for group in GROUPS for k in range(10)]
    taken = Fingerprints(names, gradients={g: torch.randn(FINE, generator=generator).double() for g in GROUPS})
    for step in range(100):
        taken.steps.append(27 * step)
        taken.hashes.append(torch.randint(0, 9 if step else 1, (len(names),), generator=generator).tolist())
        taken.sketches.append({g: torch.randn(SKETCH, generator=generator).double() for g in GROUPS})
        taken.streams.append((step + 1, step + 1))
    taken.save(folder / FILE)
    metrics = {"frechet": 5.0 + arm + float(torch.rand(1, generator=generator)), "loss/d": 1.0}
    result: dict[str, Any] = {"recipe": "gan", "arm": f"arm-{arm}", "seed": seed, "status": "finished", "steps": 2700}
    result |= {"stop": {"fakes": f"arm-{arm}"}, "metrics": metrics, "weights_sha256": f"{arm}-{seed}"}
    result |= {
        "metrics_declared": {"frechet": {"goal": "min", "margin": 2.0}},
        "step_time": 0.01,
        "saved_bytes": 4 << 20,
    }
    result |= {"flow": {loss: dict.fromkeys(GROUPS, CELL) for loss in ("d_loss", "g_loss")}}
    picture = RECORD | {"nodes": [node | {"label": f"{node['label']} {arm}"} for node in RECORD["nodes"]]}
    (folder / "flow.json").write_text(json.dumps(picture))  # of each arm another
    (folder / "result.json").write_text(json.dumps(result))
    with SummaryWriter(folder) as writer:
        for tag in ("frechet", "health/slope", *(f"loss/{k}" for k in range(10))):
            for step in range(200):
                writer.add_scalar(tag, float(torch.rand(1, generator=generator)), step)


def written(arms: int, seeds: int) -> dict[str, float]:
    """Seconds and peak MiB of ``python -m stopgrad compare`` in a process of its own, and KiB of the page."""
    with tempfile.TemporaryDirectory() as folder:
        for arm in range(arms):
            for seed in range(seeds):
                write_run(Path(folder, f"arm-{arm}", f"seed-{seed}"), arm, seed)
        started = time.perf_counter()
        command = [sys.executable, "-m", "stopgrad", "compare", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        page = Path(folder, "comparison.html")
        size, opened = page.stat().st_size, opening(page)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "seconds": seconds,
        "peak_mib": peak / (1024 if sys.platform == "linux" else 1 << 20),
        "page_kib": size / 1024,
        **opened,
    }


def opening(page: Path, repeats: int = 5) -> dict[str, float]:
    """Medians of the seconds until the page is drawn, and from a click on ``all`` until every arm is."""
    from conf_tests.browser import BROWSER, DRIVER, running_browser

    if BROWSER is None or DRIVER is None:
        return {}
    opened, redrawn = [], []
    with running_browser() as browser:
        for _ in range(repeats):
            browser.open("about:blank")
            browser.open(page.as_uri())
            opened.append(browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd") / 1e3)
            click = (
                "const t = performance.now(); document.getElementById('all-arms').click(); return performance.now() - t"
            )
            redrawn.append(browser.run(click) / 1e3)
    return {"open_seconds": statistics.median(opened), "all_arms_seconds": statistics.median(redrawn)}


def share(recipe: str, steps: int) -> float:
    """The part of fit's time that the fingerprints take, in one run of ``recipe``."""
    import lightning as L
    from hydra import compose, initialize_config_dir

    from stopgrad.runner.build import build_recipe, instantiate, quiet
    from stopgrad.runner.fingerprints import KeepFingerprints
    from stopgrad.runner.names import register

    register()
    quiet()
    spent = [0.0]

    def timed(method: Any) -> Any:
        @wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - started

        return wrapper

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose("train", [f"recipe={recipe}", f"trainer.max_steps={steps}", f"cache={ROOT / '.cache'}"])
        keep = KeepFingerprints(folder)
        for name in ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_train_end"):
            setattr(keep, name, timed(getattr(keep, name)))
        settings = {"logger": False, "callbacks": [keep], "enable_checkpointing": False, "enable_progress_bar": False}
        L.seed_everything(0, verbose=False)
        trainer = instantiate(config.trainer, _convert_="all", **settings, limit_val_batches=0)
        model, data = build_recipe(config), instantiate(config.data, _convert_="all")
        started = time.perf_counter()
        trainer.fit(model, data)
        return spent[0] / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=33)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="gan")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = written(arguments.arms, arguments.seeds)
    shares = [share(arguments.recipe, arguments.steps) for _ in range(arguments.repeats)]
    found |= {"fingerprints_share": statistics.median(shares), "shares": shares, "repeats": arguments.repeats}
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{arguments.arms} arms x {arguments.seeds} seeds: {found['seconds']:.1f} s (bar: 20), ", end="")
    print(f"{found['peak_mib']:.0f} MiB (bar: 1024), page {found['page_kib']:.0f} KiB (bar: 2930)")
    if "open_seconds" in found:
        print(f"the page opens in {found['open_seconds']:.2f} s (bar: 2), ", end="")
        print(f"and draws all arms in {found['all_arms_seconds']:.2f} s")
    print(f"fingerprints: {100 * found['fingerprints_share']:.2f}% of {arguments.recipe}'s time (bar: 2%)")


if __name__ == "__main__":
    main()
