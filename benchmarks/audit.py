"""What the audit costs: ratios to a plain training step, and to TorchLens' capture of the same model, in one run.

    pip install torchlens      # optional; without it that column stays empty
    python benchmarks/audit.py [--json] [--repeats 9] [--threads 1]
    python benchmarks/audit.py --growth [--json]    # with 10, 100 and 400 losses, layers and parts

Rows: the graph walk alone (the cheap layer); a standalone audited step, whose own backward is measured; the same with a
pass of the audit's own, as where something else comes between; the first with module names for a drawing; a batch of a
Lightning training under ``FlowAudit``, to one that it leaves alone. TorchLens captures a forward pass with its default
options; what it adds is taken against a forward, what the audit adds against a whole step. Each repeat times all rows
once, in turn, in processor time; a figure is the median over the repeats of the ratio within one repeat, with its
quartiles. ``between_audits``: what ``FlowAudit`` adds to each batch that it does not audit, of a network of two layers.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stopgrad import audit
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

    def probed(self) -> None:
        """The loss is written down in between, so that its backward is not what comes next."""
        with audit(self.model) as a:
            loss = a.loss("loss", self.loss())
            a.settle()
            self.finish(loss)

    def walk(self) -> float:
        """Seconds of a cold graph walk."""
        loss = self.loss()
        return seconds(lambda: Walk(loss))

    def torchlens(self) -> None:
        import torchlens  # pyright: ignore[reportMissingImports]

        torchlens.trace(self.model, self.x)


def seconds(step: Callable[[], Any]) -> float:
    """Processor time, which other processes disturb less."""
    start = time.process_time()
    step()
    return time.process_time() - start


def run(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, one for each repeat; every repeat times all ways in turn."""
    for way in ways.values():
        way()
    times = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(way())
    return times


def spread(figures: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high, "repeats": len(figures)}


def ratios_of(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Over the repeats the ratio to the plain step of the same repeat: a busy machine slows both sides."""
    plain = times["plain"]
    return {
        way: spread([t / p for t, p in zip(found, plain, strict=True)])
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
            "audited, probed": lambda: seconds(bench.probed),
            "audited, drawn": lambda: seconds(lambda: bench.audited(draw=True)),
        },
        repeats,
    )
    return {"seconds": {way: spread(found) for way, found in times.items()}, "ratios": ratios_of(times)}


def batches(bench: Bench, count: int, *more: Any) -> list[float]:
    """Seconds of each batch of a Lightning training with these callbacks."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    found: list[float] = []

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.automatic_optimization = bench.model, False

        def training_step(self, *_: Any) -> None:
            optimizer: Any = self.optimizers()
            loss = bench.loss()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return bench.optimizer

    class Begins(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            found.append(-time.process_time())

    class Ends(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            found[-1] += time.process_time()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=count, accelerator="cpu", callbacks=[Begins(), *more, Ends()], **off)  # pyright: ignore[reportArgumentType]
    trainer.fit(Module(), torch.utils.data.DataLoader(range(count)))  # pyright: ignore[reportArgumentType]
    return found


def in_training(bench: Bench, repeats: int) -> dict[str, float]:
    """An audited batch to the one after it; the first ones make the optimiser's state, and draw."""
    from stopgrad.lightning import FlowAudit

    times = batches(bench, 2 * repeats + 4, FlowAudit(2, contract={"*": {"model": "open"}}))[4:]
    return spread([audited / plain for audited, plain in zip(times[::2], times[1::2], strict=True)])


def between_audits(repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds that callbacks add to a batch of a small network: an empty one, and those far from an audit."""
    from lightning.pytorch import Callback

    from stopgrad.lightning import FlowAudit

    bench = Bench(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), torch.randn(4, 16), torch.randint(4, (4,)))
    ways: dict[str, Callable[[], list[Any]]] = {
        "none": lambda: [],
        "an empty callback": lambda: [Callback()],
        "FlowAudit with a contract": lambda: [FlowAudit(10**6, contract={"*": {"model": "open"}})],
        "FlowAudit that watches": lambda: [FlowAudit(10**6, on_violation="record")],
    }
    timed = {
        name: partial(lambda make: statistics.median(batches(bench, 400, *make())[20:]), m) for name, m in ways.items()
    }
    times = run(timed, repeats)
    return {
        name: spread([1e6 * (w - o) for w, o in zip(found, times["none"], strict=True)])
        for name, found in times.items()
        if name != "none"
    }


def compare_with_torchlens(bench: Bench, repeats: int, ratios: dict[str, Any]) -> None:
    """Add what TorchLens' capture costs. It runs after all else: nothing that it installs is timed with the audit."""
    both = {"plain": lambda: seconds(bench.plain), "torchlens": lambda: seconds(bench.torchlens)}
    ratios |= ratios_of(run(both, repeats))
    adds = ratios["torchlens"]["median"] - ratios["forward"]["median"]
    for way in ("audited", "in training"):
        if way in ratios:
            ratios[f"torchlens adds / {way} adds"] = {"median": adds / (ratios[way]["median"] - 1)}


class Grown:
    """A trunk of so many layers of width 16, and so many heads with a loss each; the trunk is so many parts."""

    def __init__(self, losses: int = 1, layers: int = 10, parts: int = 1) -> None:
        torch.manual_seed(0)
        self.layers = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(layers)]
        self.parts = {f"part{i}": self.layers[i * layers // parts : (i + 1) * layers // parts] for i in range(parts)}
        self.heads = {f"head{i}": nn.Linear(16, 1) for i in range(losses)}
        self.x = torch.randn(16, 16)

    def losses(self) -> Iterator[tuple[str, Tensor]]:
        hidden = self.x
        for layer in self.layers:
            hidden = hidden + 0.05 * layer(hidden)
        return ((f"loss of {name}", head(hidden).square().mean()) for name, head in self.heads.items())

    def step(self) -> None:
        torch.stack([loss for _, loss in self.losses()]).sum().backward()

    def gradients(self) -> None:
        """What the audit of several losses cannot do without: the gradient of each by itself."""
        trunk = [p for layer in self.layers for p in layer.parameters()]
        for (_, loss), head in zip(self.losses(), self.heads.values(), strict=True):
            torch.autograd.grad(loss, [*trunk, *head.parameters()], retain_graph=True)

    def audited(self) -> FlowMatrix:
        with audit({**{name: nn.ModuleList(part) for name, part in self.parts.items()}, **self.heads}) as a:
            for name, loss in self.losses():
                a.loss(name, loss)
        return a.matrix()


def growth(repeats: int) -> dict[str, Any]:
    """Processor time of the fastest of the repeats, for 10, 100 and 400 of what grows."""
    found = {}
    for what, fixed in {"losses": {}, "layers": {}, "parts": {"layers": 400}}.items():
        for count in (10, 100, 400):
            grown = Grown(**{**fixed, what: count})
            ways = {"plain": grown.step, "gradients": grown.gradients, "audited": grown.audited}
            times = run({name: partial(seconds, way) for name, way in ways.items()}, repeats)
            best = {name: min(each) for name, each in times.items()}
            found[f"{count} {what}"] = {
                "best_s": best,
                "adds_us_each": 1e6 * (best["audited"] - best["gradients"]) / count,
                "characters": len(grown.audited().text()),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What the audit costs, as ratios to a plain step in the same run.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--growth", action="store_true", help="many losses, layers and parts instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.growth:
        found = growth(options.repeats)
        print(json.dumps(found) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
        return
    benches = {
        "transformer_12": Bench(Transformer(), torch.randint(1000, (4, 64)), torch.randint(1000, (256,))),
        "resnet_18": Bench(ResNet18(), torch.randn(8, 3, 64, 64), torch.randint(1000, (8,))),
    }
    result: dict[str, Any] = {"repeats": options.repeats, "threads": options.threads, "torch": torch.__version__}
    for name, bench in benches.items():
        result[name] = compare(bench, options.repeats)
    if find_spec("lightning") is not None:
        for name, bench in benches.items():
            result[name]["ratios"]["in training"] = in_training(bench, options.repeats)
        result["between_audits_us"] = between_audits(options.repeats)
    for name, bench in benches.items() if find_spec("torchlens") is not None else ():
        compare_with_torchlens(bench, options.repeats, result[name]["ratios"])
    if options.json:
        print(json.dumps(result))
        return
    for name in benches:
        print(f"{name}: plain step {1e3 * result[name]['seconds']['plain']['median']:.1f} ms")
        for way, ratio in result[name]["ratios"].items():
            of = "" if "/" in way else f" x a plain step   {ratio['quartile_1']:.4f} to {ratio['quartile_3']:.4f}"
            print(f"  {way:<34}{ratio['median']:9.4f}{of}")
    for name, us in result.get("between_audits_us", {}).items():
        print(f"a batch with {name}: {us['median']:+.1f} us   {us['quartile_1']:.1f} to {us['quartile_3']:.1f}")


if __name__ == "__main__":
    main()
