"""Every stop of a script that ran, and which losses and parts it stands between."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stopgrad.ablate.options import add_site_options
from stopgrad.compare.files import write_whole
from stopgrad.flow.matrix import FlowMatrix
from stopgrad.flow.values import CutSite, place
from stopgrad.rewrite.acts import Switch
from stopgrad.rewrite.options import with_further
from stopgrad.rewrite.steps import Enough, at_most
from stopgrad.rewrite.stops import Stop
from stopgrad.rewrite.switches import Switches
from stopgrad.watch.options import writable
from stopgrad.watch.run import check_script, follow
from stopgrad.watch.watch import Watch

REACHED = ("open", "zero")


@dataclass(frozen=True)
class Site:
    """A stop that ran.

    Attributes:
        id: how ``--stop`` names it.
        kind: what stands there: ``detach``, ``no_grad``, ``boundary``, or what cannot be switched, such as ``item``.
        value: what it stops, as the source spells it; of a boundary its strategy.
        legal: the strategies that it may be switched to, as it stands first; none where it cannot be.
        ran: so often; 0 where it was not counted.
        losses, parts: between which it stands, by the measured cycles.
    """

    id: str
    file: str
    line: int
    kind: str
    value: str
    legal: tuple[str, ...] = ()
    ran: int = 0
    losses: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Site:
        """The site of such a dict as :meth:`to_dict` makes."""
        values: dict[str, Any] = {key: (*value,) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "legal": list(self.legal), "losses": list(self.losses), "parts": list(self.parts)}


def sites_command(options: argparse.Namespace) -> int:
    """Run the script and list its stops.

    Raises:
        ValueError: no such script; a file of ``--json`` that will not do.
    """
    options = with_further(options, "sites", add_site_options)
    check_script(options)
    writable(json=options.json)
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: choose a number from 1")
    json_file = options.json and Path(options.json).absolute()
    switches, watch = Switches({}, {}, all_noted=True), Watch(cycles=3, every=0)
    with at_most(options.steps):
        status, error = follow(options, watch, switches)
    if not watch.ranks.is_first:
        return status
    found = sites(watch, switches)
    sys.stdout.flush()
    print(f"\n{table(found)}", file=sys.stderr)
    if json_file:
        write_whole(json_file, json.dumps({"sites": [site.to_dict() for site in found]}, indent=1) + "\n")
    return status if not isinstance(error, Enough) else 0


def sites(watch: Watch, switches: Switches) -> list[Site]:
    """The stops that ran, by file and line; the script's own first, then what cannot be switched."""
    told = watch.matrix or FlowMatrix([], {}, [])
    between = list(_between(told))
    found = []
    for stop, switch in switches.made.items():
        if switch.ran:
            pairs = [(loss, part) for loss, part, cut in between if _is_of(cut, stop)]
            pairs = _of_parameters(watch, told, stop, switch) if switch.parameters else pairs
            losses, parts = ((*dict.fromkeys(each),) for each in zip(*pairs, strict=True)) if pairs else ((), ())
            place_of = {"id": stop.name, "file": stop.file, "line": stop.line}
            found.append(Site(**place_of, kind=stop.kind, value=stop.value, legal=(*stop.legal,), ran=switch.ran,
                              losses=losses, parts=parts))  # fmt: skip
    return sorted(found, key=lambda site: (site.file, site.line)) + list(_others(between, switches))


def _between(matrix: FlowMatrix) -> Iterator[tuple[str, str, CutSite]]:
    for (loss, part), cell in matrix.told().items():
        yield from ((loss, part, cut) for cut in cell.cuts)


def _is_of(cut: CutSite, stop: Stop) -> bool:
    if cut.boundary is not None:
        return cut.boundary == stop.name
    kinds = {"autograd.grad": "no_derivative", "set_grad_enabled": "no_grad"}
    return (cut.file, cut.line, cut.kind) == (stop.file, stop.line, kinds.get(stop.kind, stop.kind))


def _of_parameters(watch: Watch, told: FlowMatrix, stop: Stop, switch: Switch) -> list[tuple[str, str]]:
    """A flag or a clearing stands between its parameters' parts and the losses that hang on, or reach, them."""
    parts = {watch.home.get(watch.key(p)) for p in switch.parameters.values()}
    pairs = [(loss, part, cell) for (loss, part), cell in told.told().items() if part in parts]
    if stop.kind == "zero_grad":
        return [(loss, part) for loss, part, cell in pairs if cell.state in REACHED]
    return [(loss, part) for loss, part, cell in pairs if any(cut.kind == "requires_grad" for cut in cell.cuts)]


def _others(between: list[tuple[str, str, CutSite]], switches: Switches) -> Iterator[Site]:
    """Boundaries, and what stops a gradient and cannot be switched."""
    names = {stop.name for stop in switches.made}
    pairs: dict[CutSite, list[tuple[str, str]]] = {}
    crossed: dict[str, list[tuple[str, str, CutSite]]] = {name: [] for name in switches.met if name not in names}
    for loss, part, cut in between:
        if cut.boundary in crossed:
            crossed[cut.boundary].append((loss, part, cut))
        elif (
            cut.boundary is None
            and cut.kind != "requires_grad"
            and not any(_is_of(cut, stop) for stop in switches.made)
        ):
            pairs.setdefault(cut, []).append((loss, part))
    for name, cells in crossed.items():
        losses, parts, cuts = ((*dict.fromkeys(each),) for each in zip(*cells, strict=True)) if cells else ((), (), ())
        file, line = (cuts[0].file, cuts[0].line) if cuts else ("", 0)
        strategy = switches.met[name]
        other = "detach" if strategy == "none" else "none"
        yield Site(name, file, line, "boundary", strategy, (strategy, other), 0, losses, parts)
    for cut, cells in pairs.items():
        losses, parts = ((*dict.fromkeys(each),) for each in zip(*cells, strict=True))
        yield Site(place(cut.file, cut.line), cut.file, cut.line, cut.kind, cut.op, (), 0, losses, parts)


def table(found: list[Site]) -> str:
    """For the terminal."""
    if not found:
        return "stopgrad: no stop ran"
    rows = [("site", "kind", "value", "ran", "stands between")]
    for site in found:
        between = f"{', '.join(site.losses)} and {', '.join(site.parts)}" if site.losses else ""
        rows.append((site.id, site.kind, site.value, str(site.ran or ""), between))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    fixed = [site for site in found if not site.legal]
    told = [f"\n{len(found)} stop{'s' * (len(found) != 1)}; switch one with run --stop SITE=STRATEGY"]
    told += [f"{len(fixed)} cannot be switched: {', '.join(dict.fromkeys(s.kind for s in fixed))}"] if fixed else []
    return "\n".join([*lines, *told])
