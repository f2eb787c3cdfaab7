"""Every recipe on a GPU: does it train as on a CPU, in half precision, compiled, sharded; what does it cost?

    python benchmarks/gpu.py --check --out gpu.json      # under 8 minutes on one GPU, the most valuable first
    python benchmarks/gpu.py --all --out gpu.json        # the rest
    python benchmarks/gpu.py --check --device cpu gan    # the same program where there is no GPU, of one recipe

Each item runs in a process of its own, with a limit of time, and is kept in the file as soon as it is finished: a
second call goes on from there (``--again`` repeats what did not hold).

=========  ============================================================================================================
`fp32`     trainer=gpu in fp32 without TF32, at the default and with one boundary or switch flipped, against the CPU:
           the same weights, batches and noise; losses, weights and the audit's verdict after 20 steps
`run`      python train.py trainer=gpu: training in bf16, validation, checkpoints, test
`fsdp`     the same with trainer=fsdp on one device
`16-mixed` fp16 with a scaler, and `bf16-mixed`: finite losses; verdict and norms of the audit are fp32's
`compile`  compile=true with FlowAudit: losses and verdict are eager's; `compiled speed`: and with and without it
`waits`    how often a step of loss_logging waits for the device, by what it keeps
`speed`    steps a second, over a plain loop that calls the same training_step; waits; peak memory
=========  ============================================================================================================
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_checks as checks  # noqa: E402
from benchmarks.gpu_pool import Item, Record, line, run  # noqa: E402
from stopgrad.runner.declared import Declaration, declaration, recipe_configs  # noqa: E402

COMPILED = ("gan", "finetune", "simsiam")
TIMED = ("gan", "finetune", "simsiam", "td3", "loss_logging")
HISTORIES = {"item": (1, None), "detach": (0, 0), "deferred": (0, 0), "after_backward": (0, 0), "running_sum": (0, 0)}
CHAOTIC = 3  # steps where a difference in the last bit changes what an environment answers


def leak(of: Declaration) -> list[str]:
    """One boundary of the recipe flipped, or else one switch: the overrides."""
    for name, choice in of.turned_over().items():
        if f"stop.{name}={choice}" not in of.refuses:
            return [*of.needs.get(f"stop.{name}", []), f"stop.{name}={choice}"]
    return []


def planned(names: Sequence[str], device: str, small: bool, everything: bool) -> tuple[list[Item], list[Item]]:
    """The items that may run side by side, and those that are timed, one after the other."""
    declared = {name: declaration(str(config.recipe._target_)) for name, config in recipe_configs().items()}
    size = {name: declared[name].small if small else [] for name in names}
    recipe = {name: [f"recipe={name}", *size[name]] for name in names}
    length = ["trainer.max_steps=8", "trainer.val_check_interval=4", "trainer.log_every_n_steps=4"]
    where = "trainer=cpu" if device == "cpu" else "trainer=gpu"

    def together() -> Iterator[Item]:
        for name in names:
            chaotic = "environments" in declared[name].exempt.get("ranks", "")
            steps = CHAOTIC if chaotic else checks.STEPS
            for arm in ([], leak(declared[name])):
                if arm or not everything:
                    label = f"fp32 {name} {' '.join(arm)}".strip()
                    yield Item(
                        label, checks.agrees, {"overrides": [*recipe[name], *arm], "device": device, "steps": steps}
                    )
        for name in names:
            yield Item(
                f"run {name}", checks.script, {"arguments": [*recipe[name], *length, where], "device": device}, 110
            )
        if "gan" in names:
            fsdp = [*recipe["gan"], *length, "trainer=fsdp", "trainer.devices=1"]
            file = "stopgrad/runner/configs/trainer/fsdp.yaml"
            yield Item("fsdp gan", checks.offered, {"file": file, "arguments": fsdp, "device": device}, 120)
        for precision in ("16-mixed", "bf16-mixed"):
            for name in names:
                arguments = {"overrides": recipe[name], "device": device, "precision": precision}
                yield Item(f"{precision} {name}", checks.mixed, arguments)

        for name in names:
            if name in COMPILED or everything:
                arguments = {"overrides": recipe[name], "device": device}
                yield Item(f"compile {name}", checks.compiles, arguments, 150)

    def alone() -> Iterator[Item]:
        for history, (least, most) in HISTORIES.items() if "loss_logging" in names else ():
            overrides = [*recipe["loss_logging"], f"stop.history={history}"]
            arguments = {"overrides": overrides, "device": device, "least": least, "most": most}
            yield Item(f"waits loss_logging {history}", checks.waits, arguments)
        for name in names:
            if name in TIMED or everything:
                steps = 12 if small else 300 if everything else 100
                yield Item(f"speed {name}", checks.speed, {"overrides": recipe[name], "device": device, "steps": steps})

        for name in names:
            if name in COMPILED or everything:
                arguments = {"overrides": recipe[name], "device": device, "steps": 8 if small else 60}
                yield Item(f"compiled speed {name}", checks.compiled_speed, arguments, 120)

    return list(together()), list(alone())


def head(device: str) -> dict[str, str]:
    """Where it ran, and how."""
    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "card": card,
        "torch": str(torch.__version__),
        "command": shlex.join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="these alone")
    parser.add_argument("--check", action="store_true", help="what takes under 8 minutes")
    parser.add_argument("--all", action="store_true", help="every recipe compiled and timed")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="in the sizes with which a recipe takes a second")
    parser.add_argument("--only", default="", help="items whose names begin so, such as fp32")
    parser.add_argument("--again", action="store_true", help="repeat what did not hold")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after them")
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 1) // 2)))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    known = list(recipe_configs())
    if unknown := [name for name in arguments.recipes if name not in known]:
        parser.error(f"{unknown[0]}: no recipe; choose from {', '.join(known)}")
    if arguments.check == arguments.all:
        parser.error("choose --check or --all")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu tests the program")
    deadline = time.monotonic() + 60 * arguments.minutes
    record = Record(arguments.out, head(arguments.device))
    names = arguments.recipes or known
    together, alone = planned(names, arguments.device, arguments.small, arguments.all)
    for items, workers in ((together, arguments.workers), (alone, 1)):
        kept = record.content["items"]
        done = {name for name, found in kept.items() if found["ok"] or not arguments.again}
        run([i for i in items if i.name not in done and i.name.startswith(arguments.only)], record, workers, deadline)
    sys.exit(report(record))


def report(record: Record) -> int:
    """Print all that is known, what does not hold last; 1 where anything does not."""
    items = record.content["items"]
    print("\n" + "  ".join(f"{key}: {value}" for key, value in record.content.items() if key != "items"))
    for name, found in sorted(items.items(), key=lambda pair: not pair[1]["ok"]):
        print(line(name, found))
    wrong = sum(not found["ok"] for found in items.values())
    print(f"{len(items) - wrong} hold, {wrong} do not")
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
