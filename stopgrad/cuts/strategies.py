"""The ways to stop a gradient, as names: parsed, and checked against what a recipe declares legal.

This module does not import torch, so that a command line can list and check the choices at once.
"""

from __future__ import annotations

import difflib
import enum
import math
from collections.abc import Iterable, Mapping, Sequence


class Strategy(str, enum.Enum):
    """How the gradient is stopped where a value crosses a boundary. See docs/design.md for where each is legal."""

    NONE = "none"  # nothing: the gradient flows
    DETACH = "detach"  # .detach() on what crosses
    DETACH_ = "detach_"  # the same, in place
    DATA = "data"  # .data: also drops the version counter
    NO_GRAD = "no_grad"  # the producer runs under torch.no_grad()
    INFERENCE_MODE = "inference_mode"  # the producer runs under torch.inference_mode()
    FREEZE = "freeze"  # the producer's parameters do not require grad during the call
    SCALE = "scale"  # backward multiplies by a: written scale:a
    REVERSE = "reverse"  # backward multiplies by -l: written reverse:l


TAKES_FACTOR = (Strategy.SCALE, Strategy.REVERSE)
CALLS_ONLY = (Strategy.NO_GRAD, Strategy.INFERENCE_MODE, Strategy.FREEZE)
# What a recipe may offer beyond these, because it takes more than the crossing; and how its boundary then crosses.
OFFERED = {
    "freeze_params": Strategy.FREEZE,  # the recipe sets requires_grad False for good
    "cached": Strategy.NO_GRAD,  # the recipe keeps what crosses, and does not compute it again
}


def spelling(strategy: str) -> str:
    """How a person writes the strategy: ``scale`` is written ``scale:a``, ``reverse`` is written ``reverse:l``."""
    return {"scale": "scale:a", "reverse": "reverse:l"}.get(strategy, strategy)


def nearest(word: object, choices: Iterable[str]) -> str:
    """``'; did you mean X?'`` for the choice nearest to ``word``, or an empty string."""
    match = difflib.get_close_matches(str(word).split(":")[0], list(choices), n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def parse_strategy(text: str, *, key: str = "strategy", offered: Iterable[str] = ()) -> tuple[Strategy, float]:
    """Read ``detach``, ``scale:0.5``, ``reverse:1`` and so on into the strategy and the factor of its backward.

    The factor is 1 for strategies that take none, ``a`` for ``scale:a`` and ``-l`` for ``reverse:l``. A choice of
    ``OFFERED`` is read as the strategy it crosses by, where it is among those ``offered``.

    Raises:
        ValueError: the name is unknown, or a factor is missing, superfluous or not a finite number.
    """
    name, colon, factor = str(text).partition(":")
    crossing = {s.value: s for s in Strategy} | {choice: OFFERED[choice] for choice in offered if choice in OFFERED}
    names = list(crossing)
    if name not in names:
        raise ValueError(f"{key}={text}: choose one of {', '.join(map(spelling, names))}{nearest(text, names)}")
    strategy = crossing[name]
    if strategy not in TAKES_FACTOR:
        if colon:
            raise ValueError(f"{key}={text}: {name} takes no factor; write {key}={name}")
        return strategy, 1.0
    try:
        number = float(factor)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={text}: {name} needs a finite number; write {spelling(name)}, such as {name}:0.5")
    return strategy, number if strategy is Strategy.SCALE else -number


def check_stop(
    stop: Mapping[str, str], boundaries: Mapping[str, Sequence[str]], switches: Mapping[str, Sequence[str]]
) -> None:
    """Check a ``stop:`` section against what a recipe declares.

    Args:
        stop: chosen strategy of each boundary and chosen value of each switch.
        boundaries: legal strategies of each boundary; the first is the paper's choice.
        switches: legal values of each switch; the first is the paper's choice.

    Raises:
        ValueError: an unknown name or a choice that is not legal; one line with the key, the value and the choices.
    """
    declared = {**boundaries, **switches}
    for name, choice in stop.items():
        if name not in declared:
            hint = nearest(name, declared)
            raise ValueError(f"stop.{name}={choice}: this recipe has stop.{', stop.'.join(declared)}{hint}")
        legal = declared[name]
        kind = str(choice).partition(":")[0] if name in boundaries else choice
        if kind not in legal:
            hint = nearest(choice, legal)
            raise ValueError(f"stop.{name}={choice}: choose one of {', '.join(map(spelling, legal))}{hint}")
        if name in boundaries:
            parse_strategy(choice, key=f"stop.{name}", offered=legal)


def stops(strategy: str) -> bool:
    """Whether no gradient crosses. ``scale:0`` is no stop: zeros cross."""
    crossing, _ = parse_strategy(strategy, offered=OFFERED)
    return crossing not in (Strategy.NONE, *TAKES_FACTOR)


def flipped(stop: Mapping[str, str], default_stop: Mapping[str, str], boundaries: Iterable[str]) -> list[str]:
    """Which of the ``boundaries`` stop what by default passes, or the other way round; that breaks a contract.

    Zeros break either contract: ``scale:0`` is flipped beside any strategy but another factor of 0. Switches, which
    ``stop`` and ``default_stop`` may hold too, flip nothing.
    """

    def kind(strategy: str) -> tuple[bool, bool]:
        return stops(strategy), parse_strategy(strategy, offered=OFFERED)[1] == 0

    return [name for name in boundaries if kind(stop.get(name, default_stop[name])) != kind(default_stop[name])]
