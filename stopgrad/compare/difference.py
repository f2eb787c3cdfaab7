"""Where two runs of one seed part, how far they go, and whether they were a fair pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stopgrad.compare.fingerprint import Fingerprints
from stopgrad.compare.read import Run


def first_difference(here: Fingerprints, there: Fingerprints) -> dict[str, Any] | None:
    """The first common step at which a tensor differs; None if none does.

    ``after`` is the last step at which all were equal; ``exact`` where nothing lies between. ``tensor`` is the first in
    the order of the state dict, one of ``tensors`` that differ, of ``of`` that both have.
    """
    both = set(there.names)
    pairs = [(i, there.names.index(name), name) for i, name in enumerate(here.names) if name in both]
    after = None
    for k, step in enumerate(here.steps):
        other = there.at(step)
        if other is None:
            continue
        differ = [name for i, j, name in pairs if here.hashes[k][i] != there.hashes[other][j]]
        if differ:
            exact = step == 0 or after == step - 1
            found = {"step": step, "after": after, "exact": exact, "tensor": differ[0]}
            return found | {"tensors": len(differ), "of": len(pairs)}
        after = step
    return None


def distances(here: Fingerprints, there: Fingerprints) -> list[tuple[int, float]]:
    """(step, |w - w'| / |w'|) over all groups that both have, estimated from the sketches."""
    found = []
    for k, step in enumerate(here.steps):
        other = there.at(step)
        if other is None:
            continue
        groups = [g for g in here.sketches[k] if g in there.sketches[other]]
        apart = sum(float((here.sketches[k][g] - there.sketches[other][g]).square().sum()) for g in groups)
        size = sum(float(there.sketches[other][g].square().sum()) for g in groups)
        found.append((step, (apart / size) ** 0.5 if size else 0.0))
    return found


def pairing(here: Fingerprints, there: Fingerprints) -> dict[str, Any]:
    """Whether two runs began with the same weights and saw the same batches and random states until they parted.

    ``weights``, ``data``, ``random``: True, False, or None where it was not recorded; ``until``: the last step seen.
    """
    parted = first_difference(here, there)
    end = parted["step"] if parted else here.steps[-1]
    steps = [s for s in here.steps if s < max(end, 1) and there.at(s) is not None]
    equal: dict[str, bool | None] = {}
    for which, name in enumerate(("random", "data")):
        seen = [(here.streams[here.steps.index(s)][which], there.streams[there.steps.index(s)][which]) for s in steps]
        seen = [pair for pair in seen if 0 not in pair]
        equal[name] = all(a == b for a, b in seen) if seen else None
    start = 0 in here.steps and 0 in there.steps
    return {
        "weights": not (parted and parted["step"] == 0) if start else None,
        **equal,
        "until": max(steps, default=None),
    }


def cosines(here: Fingerprints, there: Fingerprints) -> dict[str, float | None]:
    """By group, the cosine between the gradients of the first step; None where one of them is zero."""
    return {g: cosine(v, there.gradients[g]) for g, v in here.gradients.items() if g in there.gradients}


def cosine(a: Tensor, b: Tensor) -> float | None:
    size = float(a.norm() * b.norm())
    if size == 0:
        return None
    return 1.0 if a.equal(b) else max(-1.0, min(1.0, float(a @ b) / size))


def at_parting(here: Fingerprints, there: Fingerprints, step: int) -> dict[str, dict[str, float | None]]:
    """By group, the gradients with which the step was made after which the weights differ, where both were kept.

    ``cosine`` and ``norm_ratio`` of this run's gradient with, and over, the other's; None where one is zero.
    """
    found: dict[str, dict[str, float | None]] = {}
    other = there.stepped.get(step, {})
    for group, gradient in here.stepped.get(step, {}).items():
        if group in other and len(other[group]) == len(gradient):
            size = float(other[group].norm())
            ratio = float(gradient.norm()) / size if size else None
            found[group] = {"cosine": cosine(gradient, other[group]), "norm_ratio": ratio}
    return found


def over_seeds(pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """All of the above for the pairs (arm, reference) of one arm; what the fingerprints cannot tell is None."""
    read = [(a, a.fingerprints, r.fingerprints) for a, r in pairs]
    both = [(run, a, r) for run, a, r in read if a is not None and r is not None and a.steps and r.steps]
    if not both:
        return {"first_difference": None, "parting": {}, "distance": [], "gradient_cosine": {}, "paired": None}
    firsts = {run.seed: first_difference(a, r) for run, a, r in both}
    parted = {seed: first for seed, first in firsts.items() if first}
    both_of = {run.seed: (a, r) for run, a, r in both}
    earliest = min(parted, key=lambda seed: parted[seed]["step"], default=None)
    grown: dict[int, list[float]] = {}
    for _, a, r in both:
        for step, value in distances(a, r):
            grown.setdefault(step, []).append(value)
    angles: dict[str, list[float]] = {}
    for _, a, r in both:
        for group, value in cosines(a, r).items():
            angles.setdefault(group, []).extend([] if value is None else [value])
    looked = [pairing(a, r) for _, a, r in both]
    return {
        "first_difference": {"seed": earliest, **parted[earliest]} if earliest is not None else None,
        "parting": at_parting(*both_of[earliest], parted[earliest]["step"]) if earliest is not None else {},
        "distance": [[step, sum(v) / len(v)] for step, v in sorted(grown.items()) if len(v) == len(both)],
        "gradient_cosine": {group: sum(v) / len(v) if v else None for group, v in angles.items()},
        "paired": {
            name: False if False in (seen := [p[name] for p in looked]) else (True if True in seen else None)
            for name in ("weights", "data", "random")
        },
    }
