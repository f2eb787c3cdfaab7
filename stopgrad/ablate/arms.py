"""Arms: named sets of stops that are done otherwise; asked for, or one for each stop that ran."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stopgrad.ablate.sites import Site
from stopgrad.rewrite.stops import OTHERWISE
from stopgrad.rewrite.switches import chosen

REFERENCE, AGAIN = "reference", "again"


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        stops: what is switched, as ``--stop`` writes it, with absolute files.
        changes: the same as it is told: strategy by site; and ``default``, as these sites stand.
    """

    name: str
    stops: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()
    default: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        """Its name, as a folder may be called."""
        return re.sub(r"[^\w.=#-]+", "_", self.name).strip("_") or "arm"


def asked_arms(texts: Sequence[str], script: str) -> list[Arm]:
    """Those of ``--arm "NAME: SITE=STRATEGY, SITE=STRATEGY"``.

    Raises:
        ValueError: one is written otherwise, or has a name that is taken; one line.
    """
    arms = [_asked(text, script) for text in texts]
    folders = [REFERENCE, AGAIN, *(arm.folder for arm in arms)]
    for arm in arms:
        if folders.count(arm.folder) > 1:
            raise ValueError(f"--arm {arm.name}: the name is taken; give each arm its own")
    return arms


def _asked(text: str, script: str) -> Arm:
    name, colon, changes = text.partition(": ")
    name = name.strip()
    if not colon or not name:
        raise ValueError(f'--arm {text}: write "NAME: SITE=STRATEGY, SITE=STRATEGY"')
    switches = chosen(_separated(changes), script, f"--arm {name}:")
    stops = [f"{stop.file}:{stop.id}={strategy}" for stop, strategy in switches.chosen.items()]
    stops += [f"{boundary}={strategy}" for boundary, strategy in switches.boundaries.items()]
    told = {stop.name: strategy for stop, strategy in switches.chosen.items()} | switches.boundaries
    default = {stop.name: stop.legal[0] for stop in switches.chosen} | dict.fromkeys(switches.boundaries, "as it is")
    return Arm(name, (*stops,), (*told.items(),), (*default.items(),))


def _separated(changes: str) -> list[str]:
    """What stands between commas, but for commas within brackets, as of a call's arguments."""
    found, depth = [""], 0
    for letter in changes:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [change.strip() for change in found]


def arm_of(site: Site, script: str) -> Arm:
    """The arm that does this site alone otherwise: a cut is left out, gradients are cleared late."""
    strategy = site.legal[1] if site.kind == "boundary" else OTHERWISE.get(site.kind, "none")
    own = os.path.realpath(script) == site.file
    line = site.id.partition(":")[2]
    place = site.id if site.kind == "boundary" else f"{site.file}:{line}"
    name = f"{line if own and line else site.id}={strategy}"
    return Arm(name, (f"{place}={strategy}",), ((site.id, strategy),), ((site.id, site.legal[0]),))
