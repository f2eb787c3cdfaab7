"""Malformed overrides, configs, checkpoints and run directories against train.py: one line each, nothing left behind.

    python -m conf_tests.faults.fuzz --count 400 --seed 7

A case is good when train.py ends within 20 seconds with status 0, 1 or 2 and without a traceback; where it refuses,
with an `error:` line and no file written or changed; where it runs after all, with a whole `result.json`.
Every case is made from (seed, number) alone: `--only 57` repeats one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf

from conf_tests.helpers import Ran, config, train

SECONDS = 20
SMALL = ["trainer=smoke", "recipe=dirac_gan", "logger=none", "trainer.max_steps=2", "trainer.val_check_interval=2"]
JUNK = r"""
null -1 0 1.5 1e999 -inf nan true '' [] {} [1,2 {a: ??? _ %00 é 日本 a=b a:b ../x /etc/passwd ~ ' " \ ${seed} ${nope}
${oc.env:NOPE} ${oc.env:HOME} ${hydra:x} ${recipe} {_target_:os.system} {_target_:torch.hub.load}
[{_target_:builtins.eval}] 99999999999999999999999 0x10 1_000 detach,none scale: scale:nan reverse:inf scale:1:2 none:1
"""
KEYS = "= == + ~ ++ ~~x +x stop stop. .stop stop..fakes recipe@x @ / - -- a,b"
FLAGS = "--nope -m --multirun --cfg --cfg=x --info=x --config-name=nope --config-dir=nope -h --resolve"
YAML = [
    "",
    "a: [",
    "\t- x",
    "- 1\n- 2",
    "just text",
    "a: &x [*x]",
    "? {a: b}\n: c",
    "recipe: null",
    "recipe: 3",
    "stop: [1]",
    "a: ${a}",
    "recipe: {_target_: os.system}",
    "trainer: ${nope}",
    "callbacks: {best: 1}",
    "data: {batch_size: }",
    "defaults: 3",
    "\x00",
    "defaults:\n  - nope",
    "defaults:\n  - override /recipe: nope",
    "compare: 1",
    "compare: {arms: 1}",
    "compare: {arms: {a: 1}}",
    "compare: {arms: {a: {stop: {fakes: nope}}}}",
    "compare: {reference: z, arms: {a: {x: 1}}}",
    "hydra: 1",
    "arm: a",
    "hydra: {callbacks: {x: {_target_: os.system}}}",
    "seed: {}",
    "logger: {_target_: subprocess.run}",
    "é: ü",
    "!!python/object:os.x {}",
]


def keys(node: object, path: str = "") -> Iterator[str]:
    """Every key of a config, sections included."""
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{path}{name}"
        yield from keys(child, f"{path}{name}.")


class Case:
    """What train.py is given: its arguments, and the files in the folder it is started in."""

    def __init__(self, seed: int, number: int, good: bytes) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.good = good
        self.files: dict[str, bytes] = {}
        kinds: list[Callable[[], list[str]]] = [self.override, self.override, self.key, self.flag, self.sweep]
        kinds += [self.file, self.checkpoint, self.checkpoint, self.directory]
        self.arguments = self.random.choice(kinds)()

    def override(self) -> list[str]:
        known = list(keys(OmegaConf.to_container(config("recipe=dirac_gan"))))
        prefix = self.random.choice(["", "", "", "+", "++", "~"])
        some = self.random.sample(known, self.random.choice([1, 1, 1, 2, 3]))
        return [*SMALL, *(f"{prefix}{key}={self.junk()}" for key in some)]

    def junk(self) -> str:
        return self.random.choice(["", "x" * 300, *JUNK.split()])

    def key(self) -> list[str]:
        return [
            *SMALL,
            self.random.choice(["", "a b", *KEYS.split()]) + self.random.choice(["", "=", "=1", "=x", "=null"]),
        ]

    def flag(self) -> list[str]:
        return [*SMALL, self.random.choice(FLAGS.split()), *self.random.choice([[], ["x"], ["seed=1"]])]

    def sweep(self) -> list[str]:
        key = self.random.choice(["stop.fakes", "seed", "recipe.latent", "compare", "arm", "data.batch_size", "recipe"])
        return ["-m", *SMALL, f"{key}={self.junk()},{self.junk()}"]

    def file(self) -> list[str]:
        group = self.random.choice(["compare", "recipe", "data", "callbacks", "trainer"])
        text = "# @package _global_\n" * self.random.randint(0, 1) + self.random.choice(YAML)
        self.files[f"configs/{group}/given.yaml"] = text.encode()
        arms = ["-m", "arm=a"] if group == "compare" and self.random.random() < 0.5 else []
        return ["--config-dir", "configs", *arms[:1], *SMALL, f"{group}=given", *arms[1:]]

    def checkpoint(self) -> list[str]:
        self.files["given.ckpt"] = self.damaged()
        mode = self.random.choice(["train", "evaluate"])
        path = self.random.choice(["given.ckpt"] * 8 + [".", "", "/dev/null", "given.ckpt/x", "nope"])
        return [*SMALL, f"mode={mode}", f"ckpt_path='{path}'"]

    def damaged(self) -> bytes:
        kind = self.random.choice(["cut", "flip", "noise", "empty", "content"])
        if kind == "cut":
            return self.good[: self.random.randrange(len(self.good))]
        if kind == "flip":
            whole = bytearray(self.good)
            for _ in range(self.random.choice([1, 4, 64])):
                whole[self.random.randrange(len(whole))] ^= 1 << self.random.randrange(8)
            return bytes(whole)
        if kind == "content":
            return self.changed()
        return self.random.randbytes(self.random.choice([3, 300])) if kind == "noise" else b""

    def changed(self) -> bytes:
        """A checkpoint of the right form, one entry of which is missing or of another kind."""
        with tempfile.TemporaryDirectory() as name:
            file = Path(name, "x")
            file.write_bytes(self.good)
            content = torch.load(file, weights_only=True)
            node, path = content, list(content)
            for _ in range(self.random.randint(1, 3)):
                key = self.random.choice(path)
                parent, node = node, node[key]
                path = list(node) if isinstance(node, dict) and node else []
                if not path:
                    break
            if self.random.random() < 0.5:
                del parent[key]
            else:
                parent[key] = self.random.choice([None, -1, "x", [], {}, torch.zeros(7), [[1]], 10**9])
            torch.save(content, file)
            return file.read_bytes()

    def directory(self) -> list[str]:
        self.files["file"] = b"x"
        kind = self.random.choice(["run", "sweep", "result"])
        if kind == "result":
            junk = self.random.choice([b"", b"{", b"[]", b'{"status": 3}', b"\xff\xfe", b"null"])
            name = self.random.choice(["config.yaml", "result.json"])
            self.files[f"s/seed-1/seed-1/{name}"] = junk
            self.files.setdefault("s/seed-1/seed-1/config.yaml", b"a: 1\n")
            return ["-m", *SMALL, "seed=1,2", "hydra.sweep.dir=s", "hydra.sweep.subdir=seed-1/seed-${seed}"]
        place = self.random.choice(["file", "file/x", "/proc/x", "''", "'a\\tb'", "x" * 300, "/dev/null", "."])
        sweeping = ["-m", "seed=1,2"] if kind == "sweep" else []
        return [*sweeping[:1], *SMALL, *sweeping[1:], f"hydra.{kind}.dir={place}"]

    def wrong(self) -> str | None:
        """Run it; what is wrong with how it ended, or None."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path, content in self.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            before = contents(folder)
            ran = train(*self.arguments, cwd=folder, seconds=SECONDS)
            return judged(ran, before, contents(folder))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def judged(ran: Ran, before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    if "Traceback" in ran.stderr + ran.stdout:
        return "traceback: " + ran.stderr.strip().splitlines()[-1]
    if ran.returncode not in (0, 1, 2):
        return f"no answer in {SECONDS} s" if ran.returncode in (None, -9) else f"status {ran.returncode}"
    if ran.returncode and not any(
        line.startswith(("error: ", "usage: ", "train.py: ")) for line in ran.stderr.splitlines()
    ):
        return f"status {ran.returncode} without an error line: {ran.stderr.strip()[-200:]}"
    new = [name for name in after if name not in before]
    if half_written := [name for name in new if ".tmp" in name or Path(name).name.startswith(".")]:
        return f"left {half_written}"
    for name, content in after.items():
        if Path(name).name == "result.json" and name not in before:
            json.loads(content)
    changed = [name for name in after if after[name] != before.get(name) and Path(name).name != "multirun.yaml"]
    if ran.returncode == 2 and changed:  # Hydra's own note of a sweep aside
        return f"refused, but wrote {changed}"
    return None


def good_checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        train(*SMALL, "hydra.run.dir=run", cwd=Path(name))
        return Path(name, "run", "checkpoints", "last.ckpt").read_bytes()


def failures(seed: int, numbers: range | list[int]) -> Iterator[str]:
    good = good_checkpoint()
    for number in numbers:
        case = Case(seed, number, good)
        if wrong := case.wrong():
            given = [argument for argument in case.arguments if argument not in SMALL]
            yield f"--seed {seed} --only {number}: {wrong}\n    {given} {sorted(case.files)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    found = 0
    for failure in failures(arguments.seed, numbers):
        found += 1
        print(failure, flush=True)
    print(f"{len(numbers)} cases, {found} failures")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
