"""Run directories made up in milliseconds, as train.py would leave them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from stopgrad import Boundary, audit
from stopgrad.compare import Comparison
from stopgrad.compare.fingerprint import FILE, FINE, Fingerprints, sketch
from stopgrad.compare.read import Found, Run
from stopgrad.compare.verdict import judge
from stopgrad.flow.routes import flow_record

METRICS = {"score": {"goal": "max", "margin": 0.1, "broken_below": 0.0}}
STEPS = (0, 1, 2, 4, 8, 16, 32, 50, 100)
Alter = Callable[[int, dict[str, Tensor]], None]
CLOSED = {"state": "blocked", "norm": 0.0, "cuts": ["detach at model.py:7"]}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(8, 8, generator=generator) for name in ("encoder.weight", "head.weight", "head.bias")}


def write_run(
    root: Path,
    arm: str,
    seed: int,
    score: float = 1.0,
    *,
    alter: Alter | None = None,
    steps: Sequence[int] = STEPS,
    cells: Mapping[str, Any] | None = None,
    curve: int = 0,
    once: Mapping[str, float] | None = None,
    **result: Any,
) -> Path:
    """One finished run; ``alter(step, weights)`` changes its weights from some step on."""
    folder = root / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    taken = Fingerprints(list(weights(seed)))
    for step in steps:
        now = {name: w + step for name, w in weights(seed).items()}
        if alter:
            alter(step, now)
        taken.take(step, now, (seed + 1, step + 1))
        last = now
    taken.gradients = {"encoder": sketch([last["encoder.weight"]], FINE)}
    taken.save(folder / FILE)
    digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in last.values())).hexdigest()
    flow = {"probe": {"encoder": cells or CLOSED, "head": {"state": "open", "norm": 2.0, "cuts": []}}}
    recorded = {
        "recipe": "made_up", "arm": arm,
        "stop": {"features": arm}, "stop_default": {"features": "detach"}, "seed": seed,
        "mode": "train", "status": "finished", "steps": 100, "metrics": {"score": score, "loss/probe": 1.0},
        "metrics_declared": METRICS, "weights_sha256": digest, "step_time": 0.01, "saved_bytes": 1000,
        "graph_nodes": 50, "peak_memory": 10**6, "flow": flow, "versions": {"torch": "2.13.0"}, "commit": "a" * 40,
        "threads": 1, "started": f"2026-01-01T00:00:{seed:02d}",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(recorded | result))
    if curve:
        with SummaryWriter(folder) as writer:
            for tag, value in (once or {}).items():
                writer.add_scalar(tag, value, 99)
            for step in range(curve):
                writer.add_scalar("score", score + 0.01 * step + 0.1 * seed, step)
                writer.add_scalar("loss/probe", 1 / (1 + step), step)
    return folder


def nudge(start: int, size: float = 1e-3, name: str = "head.weight") -> Alter:
    """One element of one tensor, from step ``start`` on."""

    def alter(step: int, now: dict[str, Tensor]) -> None:
        if step >= start:
            now[name][3, 4] += size

    return alter


def record(choice: str) -> dict[str, Any]:
    """``flow.json`` of a probe on an encoder, behind ``stop.features``, and of a loss that only the picture has."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    with audit(model, draw=True) as a:
        encoded = model["encoder"](torch.ones(2, 4))
        a.loss("probe", model["head"](Boundary("features", choice).cross(encoded)).sum())
        a.loss("other", encoded.square().sum())
    return flow_record(a)


def in_memory(arms: int, seeds: int, tags: int, points: int) -> Comparison:
    """A comparison of so many runs, as large as real ones, none of which stands in a file."""
    generator = torch.Generator().manual_seed(0)
    runs = []
    for arm in range(arms):
        for seed in range(seeds):
            parts = ("generator", "discriminator", "stop.fakes", "stop.discriminator")
            cell = {"state": "open" if arm % 2 else "blocked", "norm": 0.5, "cuts": ["detach at recipes/gan.py:210"]}
            result = {
                "recipe": "gan", "arm": f"arm-{arm}", "seed": seed, "status": "finished", "steps": points,
                "stop": {"fakes": "none" if arm % 2 else "detach"}, "stop_default": {"fakes": "detach"},
                "metrics": {"frechet": 5.0 + arm + seed}, "weights_sha256": f"{arm}-{seed}",
                "metrics_declared": {"frechet": {"goal": "min", "margin": 2.0}}, "step_time": 0.01,
                "flow": {loss: dict.fromkeys(parts, cell) for loss in ("d_loss", "g_loss")},
            }  # fmt: skip
            run = Run(Path(f"arm-{arm}/seed-{seed}"), f"arm-{arm}", seed, result)
            values = torch.rand(tags, points, generator=generator).tolist()
            names = ["frechet", *(f"loss/{k}" for k in range(1, tags))]
            run.__dict__["curves"] = {n: [*enumerate(row, 1)] for n, row in zip(names, values, strict=True)}
            runs.append(run)
    found = Found(runs, [])
    return Comparison(judge(found), found)
