"""What each way to stop a gradient costs: nodes built, bytes saved for backward, time. Ratios in one run.

A model (the producer) makes features, a linear head (the consumer) trains on them; one step is the forward of both and
the head's backward. The ways differ only in how the features cross.

    python benchmarks/cuts.py                     a table
    python benchmarks/cuts.py --json              one object
    python benchmarks/cuts.py --write docs/which.md    put the table into the page, between its two marks
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Cross = Callable[[nn.Module, Tensor], Tensor]


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(256, 512), nn.GELU()] + [m for _ in range(4) for m in (nn.Linear(512, 512), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(512, 64)), torch.randn(256, 256)


class Block(nn.Module):
    """Two convolutions with a skip, as in a ResNet (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))


def resnet() -> tuple[nn.Module, Tensor]:
    stem = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64)]
    return nn.Sequential(*stem, *(Block(32) for _ in range(6)), *head), torch.randn(16, 3, 16, 16)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4), torch.randn(16, 32, 64)


MODELS = {"MLP": mlp, "ResNet": resnet, "transformer": transformer}


def frozen(model: nn.Module, x: Tensor) -> Tensor:
    model.requires_grad_(False)
    try:
        return model(x)
    finally:
        model.requires_grad_(True)


def inference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        features = model(x)
    return features.clone()  # an inference tensor itself cannot be saved for the head's backward


WAYS: dict[str, Cross] = {
    "live": lambda model, x: model(x),
    "live, `clone()`": lambda model, x: model(x).clone(),
    "`detach()`": lambda model, x: model(x).detach(),
    "`detach().clone()`": lambda model, x: model(x).detach().clone(),
    "`detach_()`": lambda model, x: model(x).detach_(),
    "`.data`": lambda model, x: model(x).data,
    "`no_grad`": torch.no_grad()(lambda model, x: model(x)),
    "`inference_mode`, then `clone()`": inference,
    "`requires_grad_(False)`": frozen,
}


class Saved:
    """Bytes of activations that autograd holds: distinct storages, parameters left out, now and at the peak."""

    def __init__(self, parameters: set[int]) -> None:
        self.parameters, self.count, self.now, self.peak = parameters, {}, 0, 0

    def pack(self, tensor: Tensor) -> Held:
        return Held(self, tensor)

    def add(self, storage: torch.UntypedStorage, sign: int) -> None:
        key = storage.data_ptr()
        if key in self.parameters:
            return
        before = self.count.get(key, 0)
        self.count[key] = before + sign
        if (before == 0) != (self.count[key] == 0):
            self.now += sign * storage.nbytes()
            self.peak = max(self.peak, self.now)


class Held:
    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        saved.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.saved.add(self.tensor.untyped_storage(), -1)


def nodes(output: Tensor) -> int:
    """Nodes of the graph behind ``output``."""
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


def built(model: nn.Module, cross: Cross, x: Tensor) -> int:
    """Nodes that the producer's forward builds under a way, whether they are kept or dropped after."""
    counts: list[int] = []
    handle = model.register_forward_hook(lambda module, args, output: counts.append(nodes(output)))
    cross(model, x)
    handle.remove()
    return counts[0]


def step(model: nn.Module, head: nn.Module, cross: Cross, x: Tensor) -> None:
    head(cross(model, x)).square().mean().backward()


def cost(model: nn.Module, head: nn.Module, cross: Cross, x: Tensor) -> dict[str, float]:
    """What can be counted: nodes built by the producer, peak bytes of activations saved for backward."""
    saved = Saved({p.untyped_storage().data_ptr() for m in (model, head) for p in m.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        step(model, head, cross, x)
    return {"nodes": built(model, cross, x), "saved_bytes": saved.peak}


def measure(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Costs of every way on every model; times are medians of repeats in shuffled order, as ratios to ``no_grad``.

    CPU time, which on one thread is the step's time and does not count what other programs take.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model, x = make()
        head = nn.Linear(64, 10)
        rows = {way: cost(model, head, cross, x) for way, cross in WAYS.items()}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        order = random.Random(0)
        for _ in range(repeats):
            for way in order.sample(list(WAYS), len(WAYS)):  # each way follows each other: the allocator remembers
                start = time.process_time()
                step(model, head, WAYS[way], x)
                times[way].append(time.process_time() - start)
        medians = {way: statistics.median(t) for way, t in times.items()} if repeats else {}
        for way, median in medians.items():
            rows[way] |= {"median_ms": median * 1e3, "ratio": median / medians["`no_grad`"]}
        results[name] = rows
    return results


def table(results: dict[str, dict[str, dict[str, float]]], repeats: int) -> str:
    lines = [f"| nodes / saved MB / time | {' | '.join(results)} |", "| --- " * (1 + len(results)) + "|"]
    for way in WAYS:
        rows = [results[model][way] for model in results]
        cells = [f"{row['nodes']:.0f} / {row['saved_bytes'] / 1e6:.2f} / {row['ratio']:.2f}" for row in rows]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    base = ", ".join(f"{m} {results[m]['`no_grad`']['median_ms']:.1f} ms" for m in results)
    lines += [
        "",
        f"`no_grad` is 1.00: {base}. Medians of {repeats} steps in shuffled order; torch {torch.__version__},",
    ]
    lines += [f"{platform.machine()} CPU, 1 thread. Made by `python benchmarks/cuts.py --write docs/which.md`."]
    return "\n".join(lines)


def write(page: Path, made: str) -> None:
    """Replace what stands between the page's two marks.

    Raises:
        SystemExit: the page has no such marks.
    """
    text, found = re.subn(
        r"(<!-- cuts -->\n).*?(<!-- /cuts -->)",
        lambda mark: f"{mark[1]}{made}\n{mark[2]}",
        page.read_text(encoding="utf-8"),
        flags=re.S,
    )
    if not found:
        raise SystemExit(f"{page}: no line <!-- cuts --> with a line <!-- /cuts --> after it")
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="steps of each way on each model (at least 1)")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the table in this page")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: at least 1")
    torch.set_num_threads(1)
    results = measure(args.repeats)
    if args.json:
        print(json.dumps({"torch": torch.__version__, "repeats": args.repeats, "models": results}))
        return
    made = table(results, args.repeats)
    print(made)
    if args.write:
        write(args.write, made)


if __name__ == "__main__":
    main()
