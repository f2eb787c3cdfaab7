"""What the audit costs: ratios to a plain training step, and to TorchLens' capture of the same model, in one run.

    pip install torchlens      # optional; without it that column stays empty
    python benchmarks/audit.py [--json] [--repeats 9] [--threads 1]
    python benchmarks/audit.py --wide    # a trunk of 20 layers with 16, 64 and 256 heads and losses

Rows: the graph walk alone (the cheap layer), a standalone audited step (forward, the probe that measures the gradient,
and the step's own backward), the same with module names for a drawing, and a step under ``FlowAudit``'s way of
measuring, by hooks in the step's own backward. TorchLens captures a forward pass with its default options; what it adds
is taken against a forward, what the audit adds against a whole step. Each repeat times all rows once, in turn; a
figure is the median over the repeats of the ratio within one repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stopgrad import audit
from stopgrad.flow import measure
from stopgrad.flow.graph import Walk
from stopgrad.flow.matrix import FlowMatrix


class Transformer(nn.Module):
    """12 layers, width 256, 4 heads, a vocabulary of 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True) for _ in range(12))
        self.head = nn.Linear(256, 1000)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden).flatten(0, 1)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs))
        self.second = nn.Sequential(nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs))
        same = ins == outs and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """ResNet-18 for images of 64x64 or more, 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [b for ins, outs, stride in widths for b in (Block(ins, outs, stride), Block(outs, outs, 1))]
        self.stem, self.blocks = nn.Sequential(*stem), nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Bench:
    """One model, one batch, and the ways to step it."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def finish(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def plain(self) -> None:
        self.finish(self.loss())

    def audited(self, **options: Any) -> None:
        with audit(self.model, **options) as a:
            self.finish(a.loss("loss", self.loss()))

    def hooked(self) -> None:
        """What ``stopgrad.lightning.FlowAudit`` does around a step."""
        norms: dict[int, Tensor] = {}
        with audit(self.model) as a:
            handles = [
                p.register_hook(partial(lambda key, grad: norms.__setitem__(key, measure.norm(grad)), id(p)))
                for p in self.model.parameters()
            ]
            loss = self.loss()
            a.admit("loss", loss)
            self.finish(loss)
            a.record("loss", loss, {key: float(n) for key, n in norms.items()}, {})
            for handle in handles:
                handle.remove()

    def walk(self) -> float:
        """Seconds of a cold graph walk."""
        loss = self.loss()
        start = time.perf_counter()
        Walk(loss)
        return time.perf_counter() - start

    def torchlens(self) -> None:
        import torchlens  # pyright: ignore[reportMissingImports]

        torchlens.trace(self.model, self.x)


def seconds(step: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    step()
    return clock() - start


def run(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, one for each repeat; every repeat times all ways in turn."""
    for way in ways.values():
        way()
    times = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(way())
    return times


def ratios_of(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the repeats of the ratio to the plain step of the same repeat: a busy machine slows both sides."""
    plain = times["plain"]
    return {
        way: statistics.median(t / p for t, p in zip(found, plain, strict=True))
        for way, found in times.items()
        if way != "plain"
    }


def compare(bench: Bench, repeats: int) -> dict[str, Any]:
    """Every way of the audit against a plain step."""
    times = run(
        {
            "plain": lambda: seconds(bench.plain),
            "forward": lambda: seconds(bench.loss),
            "walk": bench.walk,
            "audited": lambda: seconds(bench.audited),
            "audited_draw": lambda: seconds(lambda: bench.audited(draw=True)),
            "hooked": lambda: seconds(bench.hooked),
        },
        repeats,
    )
    return {
        "median_s": {way: statistics.median(found) for way, found in times.items()},
        "ratios": ratios_of(times),
    }


def compare_with_torchlens(bench: Bench, repeats: int, ratios: dict[str, float]) -> None:
    """Add what TorchLens' capture costs. It runs after all else: nothing that it installs is timed with the audit."""
    both = {"plain": lambda: seconds(bench.plain), "torchlens": lambda: seconds(bench.torchlens)}
    ratios |= ratios_of(run(both, repeats))
    for way in ("audited", "hooked"):
        ratios[f"torchlens adds / {way} adds"] = (ratios["torchlens"] - ratios["forward"]) / (ratios[way] - 1)


class Wide:
    """A trunk of 20 layers of width 16, and so many heads with a loss each; trunk and heads are the parts."""

    def __init__(self, heads: int) -> None:
        torch.manual_seed(0)
        self.trunk = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(16, 16), nn.Tanh())))
        self.heads = {f"head{i}": nn.Linear(16, 1) for i in range(heads)}
        self.x = torch.randn(16, 16)

    def losses(self) -> Iterator[tuple[str, Tensor]]:
        hidden = self.trunk(self.x)
        return ((f"loss of {name}", head(hidden).square().mean()) for name, head in self.heads.items())

    def step(self) -> None:
        torch.stack([loss for _, loss in self.losses()]).sum().backward()

    def gradients(self) -> None:
        """What the audit cannot do without: the gradient of each loss by itself."""
        trunk = list(self.trunk.parameters())
        for (_, loss), head in zip(self.losses(), self.heads.values(), strict=True):
            torch.autograd.grad(loss, [*trunk, *head.parameters()], retain_graph=True)

    def audited(self) -> FlowMatrix:
        with audit({"trunk": self.trunk, **self.heads}) as a:
            for name, loss in self.losses():
                a.loss(name, loss)
        return a.matrix()


def wide(repeats: int) -> dict[str, Any]:
    """Processor time, which other processes disturb less, of the fastest of the repeats."""
    found = {}
    for heads in (16, 64, 256):
        model = Wide(heads)
        ways = {"plain": model.step, "gradients": model.gradients, "audited": model.audited}
        times = run({name: partial(seconds, way, time.process_time) for name, way in ways.items()}, repeats)
        best = {name: min(each) for name, each in times.items()}
        found[f"{heads} losses"] = {
            "best_s": best,
            "ratios": {name: each / best["plain"] for name, each in best.items() if name != "plain"},
            "characters": len(model.audited().text()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What the audit costs, as ratios to a plain step in the same run.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wide", action="store_true", help="many losses and parts instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.wide:
        found = wide(options.repeats)
        print(json.dumps(found, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
        return
    benches = {
        "transformer_12": Bench(Transformer(), torch.randint(1000, (4, 64)), torch.randint(1000, (256,))),
        "resnet_18": Bench(ResNet18(), torch.randn(8, 3, 64, 64), torch.randint(1000, (8,))),
    }
    result: dict[str, Any] = {"repeats": options.repeats, "threads": options.threads, "torch": torch.__version__}
    for name, bench in benches.items():
        result[name] = compare(bench, options.repeats)
    for name, bench in benches.items() if find_spec("torchlens") is not None else ():
        compare_with_torchlens(bench, options.repeats, result[name]["ratios"])
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name in benches:
        print(f"{name}: plain step {1e3 * result[name]['median_s']['plain']:.1f} ms")
        for way, ratio in result[name]["ratios"].items():
            print(f"  {way:<32}{ratio:9.4f}" + (" x a plain step" if "/" not in way else ""))


if __name__ == "__main__":
    main()
