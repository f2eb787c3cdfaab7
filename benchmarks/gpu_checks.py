"""The checks of benchmarks/gpu.py. Each returns whether it holds, in words, and the figures that say so."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_runs import Trained, plain, trained  # noqa: E402
from stopgrad.runner.build import quiet  # noqa: E402
from stopgrad.runner.names import register  # noqa: E402
from stopgrad.runner.project import open_project  # noqa: E402

# How far fp32 on the device may part from the CPU: not further than so many times what the CPU parts from itself where
# its first weights are changed by a part in a million, and this much more.
TIMES, MORE = 10, 1e-4
# How far a norm of the first audit may part from fp32's: in bf16 an action that is sampled may be another.
NORMS = {"bf16-mixed": 0.2, "16-mixed": 0.02}
COMPILED = 1e-3  # and a loss of a compiled network from eager's, over 6 steps
STEPS = 20
SMALL_SCALE = 256.0

open_project(ROOT)


def begin() -> None:
    """Before each item: no TF32, one thread, no warnings."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet()
    register()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def apart(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> float:
    """The largest difference of a loss, relative to the largest of all; inf where they came otherwise, or as NaN."""
    if {name: len(each) for name, each in a.items()} != {name: len(each) for name, each in b.items()}:
        return math.inf
    found = [abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True)]
    largest = max((abs(value) for each in a.values() for value in each), default=0.0) or 1.0
    return math.inf if any(math.isnan(value) for value in found) else max(found, default=0.0) / largest


def moved_apart(a: Trained, b: Trained) -> float:
    """How far the weights of ``b`` end from those of ``a``, relative to how far those moved, all as one vector."""
    moved = sum(float((a.after[name] - a.before[name]).square().sum()) for name in a.after)
    between = sum(float((a.after[name] - b.after[name]).square().sum()) for name in a.after)
    return math.sqrt(between / moved) if moved else math.sqrt(between)


def other_cells(a: Trained, b: Trained) -> list[str]:
    """The cells that two audits judge otherwise, in words."""
    names = list(dict.fromkeys([*a.cells, *b.cells]))
    return [f"{n} {a.cells.get(n)} -> {b.cells.get(n)}" for n in names if a.cells.get(n) != b.cells.get(n)]


def norms_apart(a: Trained, b: Trained) -> float:
    """The largest relative difference of a norm that both have."""
    return max(
        (abs(b.norms[n] - a.norms[n]) / a.norms[n] for n in a.norms.keys() & b.norms.keys() if a.norms[n]), default=0.0
    )


def finite(losses: Mapping[str, Sequence[float]]) -> bool:
    return all(math.isfinite(value) for each in losses.values() for value in each)


def agrees(overrides: Sequence[str], device: str, steps: int = STEPS) -> dict[str, Any]:
    """fp32 on the device against the CPU: the same weights, batches and noise; losses, weights and the verdict."""
    begin()
    here, near = (trained(overrides, "cpu", steps, same_noise=True, disturbed=by) for by in (0.0, 1e-6))
    there = trained(overrides, device, steps, same_noise=True)
    losses, weights, cells = apart(here.losses, there.losses), moved_apart(here, there), other_cells(here, there)
    most = TIMES * apart(here.losses, near.losses) + MORE, TIMES * moved_apart(here, near) + MORE
    ok = losses <= most[0] and weights <= most[1] and not cells and here.broken == there.broken
    said = f"after {steps} steps losses {losses:.1e} apart (of {most[0]:.1e}), weights {weights:.1e} (of {most[1]:.1e})"
    said += f"; verdict {'the same' if not cells else ', '.join(cells)}"
    said += f"; broken: {', '.join(here.broken)}" if here.broken else ""
    said += f", on the device {', '.join(there.broken) or 'none'}" if here.broken != there.broken else ""
    figures = {"losses": losses, "weights": weights, "most": most, "steps": steps, "broken": there.broken}
    return {"ok": ok, "said": said, **figures}


def mixed(overrides: Sequence[str], device: str, precision: str, steps: int = STEPS) -> dict[str, Any]:
    """In half precision: finite losses, and the audit's verdict and norms are fp32's.

    The norms are those of a first batch of its own, with a scale under which nothing overflows and no step is left out.
    """
    begin()
    full = trained(overrides, device, 2, same_noise=True)
    first = trained(overrides, device, 2, precision=precision, same_noise=True, first_scale=SMALL_SCALE)
    half = trained(overrides, device, steps, precision=precision, same_noise=True)
    cells, norms, whole = other_cells(full, half), norms_apart(full, first), finite(half.losses)
    ok = whole and not cells and norms <= NORMS[precision] and full.broken == half.broken
    said = f"{steps} steps, losses {'finite' if whole else 'NOT FINITE'}"
    said += f"; verdict {'the same' if not cells else ', '.join(cells)}; norms {norms:.1e} from fp32's"
    said += f"; scale {half.scale:.0f}" if precision == "16-mixed" else ""
    return {"ok": ok, "said": said, "norms": norms, "scale": half.scale}


def compiles(overrides: Sequence[str], device: str) -> dict[str, Any]:
    """torch.compile: losses and verdict are those of eager. What is audited, the first batch, runs eagerly."""
    begin()
    eager, fast = (trained(overrides, device, 6, compiled=compiled) for compiled in (False, True))
    cells, losses = other_cells(eager, fast), apart(eager.losses, fast.losses)
    ok = not cells and eager.broken == fast.broken and losses <= COMPILED
    said = f"losses {losses:.1e} from eager's; verdict {'the same' if not cells else ', '.join(cells)}"
    return {"ok": ok, "said": said, "losses": losses}


def compiled_speed(overrides: Sequence[str], device: str, steps: int) -> dict[str, Any]:
    """The time of a step, compiled and eager, with FlowAudit at every step and without it."""
    begin()
    seconds = {}
    for compiled, audited in itertools.product((False, True), repeat=2):
        every, half = 1 if audited else None, steps // 2
        run = trained(overrides, device, steps, compiled=compiled, audited=audited, audit_every=every, warm_up=half)
        assert run.seconds is not None
        seconds[compiled, audited] = run.seconds
    ratio = seconds[True, False] / seconds[False, False]
    audit = {name: seconds[k, True] / seconds[k, False] for name, k in (("eager", False), ("compiled", True))}
    said = f"a step {1e3 * seconds[False, False]:.2f} ms, compiled {ratio:.2f} of it"
    said += f"; audited at every step {audit['eager']:.1f} times as long, compiled {audit['compiled']:.1f}"
    return {"ok": True, "said": said, "compiled_over_eager": ratio, "audited_over_not": audit}


def speed(overrides: Sequence[str], device: str, steps: int) -> dict[str, Any]:
    """A step as train.py runs it against a plain loop; waits of one that does not log; peak memory."""
    begin()
    run, loop = trained(overrides, device, steps, waits=True), plain(overrides, device, steps)
    assert run.seconds is not None
    ratio = run.seconds / loop
    said = f"{1 / run.seconds:.0f} steps a second, {ratio:.2f} of a plain loop's time, {run.waits} waits a step"
    said += f", {run.peak >> 20} MiB at most" if run.peak else ""
    figures = {"milliseconds": run.seconds * 1e3, "over_plain": ratio, "waits": run.waits, "peak_memory": run.peak}
    return {"ok": True, "said": said, **figures}


def waits(overrides: Sequence[str], device: str, least: int, most: int | None) -> dict[str, Any]:
    """How often a step waits for the device; ``least`` and ``most``: how often it must."""
    begin()
    count = trained(overrides, device, 12, waits=True).waits
    assert count is not None
    ok = least <= count <= (count if most is None else most)
    return {"ok": ok, "said": f"{count} waits a step", "waits": count}


def script(arguments: Sequence[str], device: str, seconds: float = 100) -> dict[str, Any]:
    """``python train.py ARGUMENTS``: it ends as finished, having kept its contract, validated and tested."""
    cpu = ["trainer.accelerator=cpu"] if device == "cpu" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *arguments, *cpu, f"cache={ROOT / '.cache'}", "logger=none"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        ran = subprocess.Popen([*command, "hydra.run.dir=run"], cwd=folder, env=env, start_new_session=True, **pipes)
        try:
            _, errors = ran.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(ran.pid, signal.SIGKILL)  # its ranks too
            ran.communicate()
            return {"ok": False, "said": f"not finished after {seconds:.0f} s"}
        file = Path(folder, "run", "result.json")
        if not file.exists():
            said = (errors.strip().splitlines() or ["it left no result.json"])[-1]
            return {"ok": False, "said": said[:300], "error": errors[-3000:]}
        result = json.loads(file.read_text())
    ok = result["status"] == "finished" and ran.returncode == 0 and not result.get("violations")
    said = [f"{result['status']}, {result.get('steps')} steps", result.get("message"), *result.get("violations", [])]
    return {"ok": ok, "said": "; ".join(filter(None, said))[:300]}


def offered(file: str, arguments: Sequence[str], device: str) -> dict[str, Any]:
    """As :func:`script`, where the settings' file is there."""
    if not (ROOT / file).exists():
        return {"ok": False, "said": f"not offered: there is no {file}"}
    return script(arguments, device)
