"""Where a sweep is: which run this is of how many, and how long the others will take, counted from what is on disk.

So it is right whoever runs the arms: one process, several side by side, or ranks.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: its folder, its name, and its place, such as ``arm 4 of 11, seed 1 of 3``."""

    folder: Path
    name: str
    place: str


@dataclass
class Sweep:
    """The runs of a sweep in their order; none where its sweeper does not know them beforehand."""

    folder: Path
    recipe: str
    planned: list[Planned]
    started: float = field(default_factory=time.time)
    now: ClassVar[Sweep | None] = None  # the one that this process takes part in

    @classmethod
    def of(cls, config: DictConfig, configs: Sequence[DictConfig]) -> Sweep:
        """The sweep of ``config`` over ``configs``, those of its runs."""
        folder = Path(config.hydra.sweep.dir).resolve()
        found = [(str(each.hydra.sweep.subdir), each.arm, each.seed) for each in configs]
        return cls(folder, str(config.hydra.runtime.choices.recipe), list(_placed(found, folder)))

    def run_in(self, folder: Path) -> Planned:
        """What was planned for ``folder``."""
        known = {run.folder: run for run in self.planned}
        return known.get(folder.resolve(), Planned(folder, "/".join(folder.parts[-2:]), "run"))

    def finished_before(self) -> int:
        """How many runs were there when the sweep started."""
        return sum(self._ended(run) == "before" for run in self.planned)

    def seconds_left(self, here: Path) -> float | None:
        """How long the runs that have not ended will take, at the pace of those that have; None before any has.

        ``here`` is the run that asks. Others may go on beside it: as many as are seen to, or as the work done so far
        needed.
        """
        ended = {run.folder: self._ended(run) for run in self.planned}
        rest = [folder for folder, when in ended.items() if when is None]
        beside = sum(self._is_going(folder) for folder in rest if folder != here.resolve())
        took = [when for when in ended.values() if isinstance(when, float)]
        at_once = max(beside + 1, round(sum(took) / (time.time() - self.started)))
        return statistics.fmean(took) * len(rest) / at_once if took else None

    def _ended(self, run: Planned) -> float | str | None:
        """The seconds that it took; ``before`` where it finished in an earlier sweep; None where it is to come."""
        file = run.folder / "result.json"
        try:
            result: dict[str, Any] = json.loads(file.read_text())
            if file.stat().st_mtime >= self.started:
                return float(result["seconds"])
        except (OSError, ValueError, KeyError):
            return None
        return "before" if result.get("status") == "finished" else None

    def _is_going(self, folder: Path) -> bool:
        try:
            return (folder / "config.yaml").stat().st_mtime >= self.started
        except OSError:
            return False

    def __str__(self) -> str:
        before = self.finished_before()
        there = f"; {before} finished before" if before else ""
        return f"{self.recipe}: {len(self.planned) or 'some'} runs into {shown(self.folder)}{there}"


def _placed(found: Sequence[tuple[str, str | None, int]], folder: Path) -> Iterator[Planned]:
    """Runs (subdirectory, arm, seed) with their places: by arm and seed where the sweep is their product."""
    arms, seeds = (list(dict.fromkeys(run[k] for run in found)) for k in (1, 2))
    product = None not in arms and len(found) == len(arms) * len(seeds) == len({run[1:] for run in found})
    for number, (subdir, arm, seed) in enumerate(found, start=1):
        if product:
            place = f"arm {arms.index(arm) + 1:>{len(str(len(arms)))}} of {len(arms)}"
            place += f", seed {seeds.index(seed) + 1} of {len(seeds)}" if len(seeds) > 1 else ""
        else:
            place = f"run {number:>{len(str(len(found)))}} of {len(found)}"
        yield Planned(folder / subdir, str(arm) if product else subdir, place)


def duration(seconds: float) -> str:
    """``40 s``, ``8 min``, ``2 h 10 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def shown(folder: Path) -> Path:
    """``folder`` as a person who stands here would write it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
