"""What ``python -m stopgrad ablate`` costs beside the runs themselves: a script with 12 sites, 3 seeds, 40 runs.

    python benchmarks/ablate.py --steps 3000

The runs themselves: the same script by ``python``, timed before and after, their median taken as often as ablate runs
it. An arm is forked from a process that has loaded torch, and so starts sooner than a script of its own does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """\
import sys

import torch
from torch import nn, optim

torch.manual_seed(int(sys.argv[1]))
G = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 2))
D = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 1))
g_opt, d_opt = optim.Adam(G.parameters(), 1e-3), optim.Adam(D.parameters(), 1e-3)
average = [p.detach().clone() for p in G.parameters()]
bce = nn.functional.binary_cross_entropy_with_logits
ones, zeros = torch.ones(128, 1), torch.zeros(128, 1)
total = 0.0
for step in range(int(sys.argv[2])):
    fake = G(torch.randn(128, 8))
    d_loss = bce(D(torch.randn(128, 2)), ones) + bce(D(fake.detach()), zeros)
    with torch.no_grad():
        score = D(fake).mean()
    d_opt.zero_grad()
    d_loss.backward()
    d_opt.step()
    total += d_loss.detach() * 0.01
    g_loss = bce(D(G(torch.randn(128, 8))), ones) * score.detach().abs().clamp(1, 1)
    g_opt.zero_grad()
    g_loss.backward()
    g_opt.step()
    kept = g_loss.detach()
    for mean, p in zip(average, G.parameters()):
        mean.lerp_(p.data, 0.01)
with torch.no_grad():
    print("score:", D(G(torch.randn(128, 8))).mean().item())
with torch.inference_mode():
    print("spread:", G(torch.randn(128, 8)).std().item())
G.requires_grad_(False)
"""
SITES, SEEDS = 12, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "script.py").write_text(SCRIPT)

        def seconds(*arguments: str) -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
            return time.perf_counter() - began

        plain = [seconds("script.py", str(seed), str(options.steps)) for seed in range(SEEDS)]
        given = ["--seeds", ",".join(map(str, range(SEEDS))), "--jobs", str(options.jobs), "--json", "arms.json"]
        whole = seconds("-m", "stopgrad", "ablate", *given, "script.py", "{seed}", str(options.steps))
        plain += [seconds("script.py", str(seed), str(options.steps)) for seed in range(SEEDS)]
        arms = json.loads((Path(folder) / "arms.json").read_text())["arms"]
    runs = len(arms) * SEEDS + 1
    assert len(arms) == SITES + 1, [arm["name"] for arm in arms]
    alone = statistics.median(plain) * runs
    print(f"a run by itself: {statistics.median(plain):.1f} s ({min(plain):.1f} to {max(plain):.1f})")
    print(f"{runs} runs by themselves: {alone:.0f} s; ablate: {whole:.0f} s, {whole / alone:.2f} of that")


if __name__ == "__main__":
    main()
