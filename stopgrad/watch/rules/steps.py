"""Gradients that are cleared too late or too early, and parameters that are stepped too often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from stopgrad.watch.findings import Finding, rule, shown
from stopgrad.watch.seen import Seen


def _by(watch: Seen, kind: str) -> dict[tuple[str, int], Counter[int]]:
    """(loss, optimiser) -> parameter -> how often the optimiser used the loss's gradient in this way."""
    found: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for (loss, parameter, optimizer, how), count in watch.ledger.uses.items():
        if how == kind:
            found[loss, optimizer][parameter] += count
    return found


@rule
def leaks(watch: Seen) -> Iterator[Finding]:
    """A gradient that was left by a loss of another optimiser, and stepped."""
    for (loss, optimizer), parameters in _by(watch, "leak").items():
        known = watch.ledger.optimizers[optimizer]
        file, line, _ = watch.ledger.losses[loss]
        part, times = watch.parts_of(parameters), max(parameters.values())
        yield Finding(
            "late_zero_grad",
            "error",
            f"{known.title} stepped {part} on {loss}'s gradient as well, in {times} of {known.steps} steps",
            f"cut what crosses from {part} into {loss} (.detach()), or clear {known.title} before its own backward",
            file,
            line,
        )


@rule
def never_cleared(watch: Seen) -> Iterator[Finding]:
    """A gradient that was stepped, not cleared, and stepped again."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for (_, optimizer), parameters in _by(watch, "again").items():
        found[optimizer] += parameters
    for optimizer, parameters in found.items():
        known = watch.ledger.optimizers[optimizer]
        times = min(max(parameters.values()), known.steps - 1)
        yield Finding(
            "never_zeroed",
            "error",
            f"{known.title} stepped {watch.parts_of(parameters)} on gradients that an earlier step had used, "
            f"in {times} of {known.steps} steps",
            f"call {known.title}.zero_grad() before each backward, or after each step",
            *known.stepped_at,
        )


@rule
def stepped_by_two(watch: Seen) -> Iterator[Finding]:
    """Two optimisers stepped on one gradient."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for (_, optimizer), parameters in _by(watch, "twice").items():
        found[optimizer] += parameters
    holders = watch.ledger.holders()
    for optimizer, parameters in found.items():
        known = watch.ledger.optimizers[optimizer]
        owners = {o for p in parameters for o in holders.get(p, ()) if o != optimizer}
        others = shown(watch.ledger.optimizers[o].title for o in sorted(owners))
        yield Finding(
            "stepped_by_two",
            "error",
            f"{known.title} and {others} step {watch.parts_of(parameters)} on the same gradient, "
            f"in {max(parameters.values())} of {known.steps} steps",
            "give each parameter to one optimiser, or clear its gradient between the two steps",
            *known.stepped_at,
        )


@rule
def shared_by_two(watch: Seen) -> Iterator[Finding]:
    """Two optimisers step the same parameters, each on gradients of its own: on purpose, as a rule."""
    ledger = watch.ledger
    used = {(parameter, optimizer) for _, parameter, optimizer, _ in ledger.uses}
    twice = {parameter for _, parameter, _, kind in ledger.uses if kind == "twice"}
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for parameter, owners in ledger.holders().items():
        stepping = tuple(owner for owner in owners if (parameter, owner) in used)
        if len(stepping) > 1 and parameter not in twice:
            groups[stepping].append(parameter)
    for owners, parameters in groups.items():
        first, *others = (ledger.optimizers[owner].title for owner in owners)
        yield Finding(
            "stepped_by_two",
            "note",
            f"{first} and {shown(others)} both step {watch.parts_of(parameters)}, each on gradients of its own",
            "nothing, if that is meant",
            *ledger.optimizers[owners[-1]].stepped_at,
        )


@rule
def empty_steps(watch: Seen) -> Iterator[Finding]:
    """Steps with no gradient at all."""
    for known in watch.ledger.optimizers.values():
        if not known.steps or known.empty_steps < known.steps or any(watch.ledger.rebuilt.values()):
            continue
        holds = set(known.holds)
        cleared = sorted({loss for (loss, parameter) in watch.ledger.wasted if parameter in holds})
        frozen = holds and not holds & watch.ledger.required
        if cleared:
            why, fix = (
                f"{shown(cleared)} wrote gradients, which were cleared before",
                "zero_grad, backward, step: in this order",
            )
        elif frozen:
            why, fix = "nothing that it holds requires grad", "make the optimiser over the parameters that are to train"
        else:
            why, fix = "no loss wrote one", "give the loss a path to these parameters"
        yield Finding(
            "empty_optimizer" if frozen else "empty_step",
            "error",
            f"{known.title} found no gradient in any of its {known.steps} steps: {why}",
            fix,
            *known.stepped_at,
        )


@rule
def listed_twice(watch: Seen) -> Iterator[Finding]:
    """A parameter that one optimiser holds more than once: it is stepped as often."""
    for known in watch.ledger.optimizers.values():
        twice = [p for p, count in Counter(known.holds).items() if count > 1]
        if twice and known.steps:
            yield Finding(
                "listed_twice",
                "error",
                f"{known.title} holds {len(twice)} parameters of {watch.parts_of(twice)} more than once, "
                "and steps them as often",
                "give it each parameter once: list(dict.fromkeys(parameters))",
                known.file,
                known.line,
            )
