"""What ``python -m stopgrad run`` costs: steps that it does not watch, that it books, that it measures, and its start.

    python benchmarks/run.py

Each step is timed against the same step without it, in the same process, in turn; the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from stopgrad.watch.hooks import overhear
from stopgrad.watch.watch import Watch

ALWAYS = 10**9


class Block(nn.Module):
    """A residual block of ResNet-18 (He et al. 2016)."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.short = (
            nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if inside != out or stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)), torch.randn(64, 8)


def resnet18() -> tuple[nn.Module, Tensor]:
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *(Block(*w) for w in widths), *head), torch.randn(8, 3, 32, 32)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    return nn.TransformerEncoder(layer, 12), torch.randn(8, 32, 128)


def seconds(step: Callable[[], None], count: int, watch: Watch | None) -> float:
    """Of one step, in the mean of ``count``, when it has warmed up."""
    with nullcontext() if watch is None else overhear(watch):
        for _ in range(1 + count // 10):  # Python looks at every class anew that was changed
            step()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        took = time.perf_counter() - begin
    if watch is not None:
        watch.close()
    return took / count


def ratios(model: nn.Module, x: Tensor, rounds: int, count: int) -> tuple[float, dict[str, float]]:
    """Seconds of a plain step, and the steps of the three tiers over it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    tiers = {
        "not watched": lambda: Watch(cycles=0, every=0, books=0),
        "in the books": lambda: Watch(cycles=0, every=0, books=ALWAYS),
        "measured": lambda: Watch(cycles=ALWAYS, every=0, books=ALWAYS),
    }
    plain, found = [], {name: [] for name in tiers}
    for _ in range(rounds):
        for name, make in tiers.items():
            alone, watched, again = seconds(step, count, None), seconds(step, count, make()), seconds(step, count, None)
            plain.append(alone)
            found[name].append(2 * watched / (alone + again))
    return statistics.median(plain), {name: statistics.median(each) for name, each in found.items()}


def start(code: str) -> float:
    """Seconds of a process that runs ``code``, the best of five."""
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - begin)
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="repetitions of each comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':14}{'plain':>10}{'not watched':>14}{'in the books':>14}{'measured':>10}")
    for name, make, count in (("MLP", mlp, 1500), ("ResNet-18", resnet18, 3), ("transformer", transformer, 5)):
        plain, found = ratios(*make(), options.rounds, count)
        print(f"{name:14}{plain * 1e3:>7.2f} ms" + "".join(f"{r:>13.3f}x" for r in found.values()))
    more = start("import torch, stopgrad.watch.run") - start("import torch")
    print(f"start-up: {more:.2f} s more than import torch")


if __name__ == "__main__":
    main()
