"""Paired differences over seeds: Student's t intervals, and what they allow one to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any


def t_probability(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution, by its finite sums (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    term, total = 1.0, 0.0
    if freedom % 2 == 0:
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= square * (2 * k - 1) / (2 * k)
        return math.sin(angle) * total
    term = math.cos(angle)
    for k in range(1, (freedom - 1) // 2 + 1):
        total += term
        term *= square * 2 * k / (2 * k + 1)
    return (angle + math.sin(angle) * total) * 2 / math.pi


@cache
def t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = ``confidence``: 12.706 for .95 and one degree of freedom."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < confidence else (low, middle)
    return high


def interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The t interval of the mean; the whole line for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean = statistics.fmean(values)
    half = t_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class Difference:
    """A metric's paired difference, arm minus reference, over the seeds that both have.

    Attributes:
        low, high: its 95% interval, widened for the number of metrics (Bonferroni), by which arms are called different.
        low90, high90: its 90% interval, by which they are called the same: both one-sided tests at 5% (Schuirmann
            1987, https://doi.org/10.1007/BF01068419).
        conclusion: ``same`` if the 90% interval lies within the margin, ``different`` if the 95% one lies outside,
            else ``cannot_tell``.
        seeds_needed: about how many seeds would tell, at this spread; None where it is told or cannot be said.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    low90: float
    high90: float
    margin: float
    conclusion: str
    seeds_needed: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"values": list(self.values)}


def difference(values: Sequence[float], margin: float, metrics: int = 1) -> Difference:
    """Judge the paired differences ``values``, of one metric out of so many.

    Raises:
        statistics.StatisticsError: there are none.
    """
    mean = statistics.fmean(values)
    low, high = interval(values, 1 - 0.05 / metrics)
    low90, high90 = interval(values, 0.90)
    if -margin <= low90 and high90 <= margin:
        conclusion = "same"
    elif low > margin or high < -margin:
        conclusion = "different"
    else:
        conclusion = "cannot_tell"
    needed = seeds_needed(values, margin, metrics) if conclusion == "cannot_tell" else None
    return Difference(tuple(values), mean, low, high, low90, high90, margin, conclusion, needed)


def seeds_needed(values: Sequence[float], margin: float, metrics: int, most: int = 100) -> int | None:
    """How many seeds would tell, if mean and spread stayed as they are."""
    if len(values) < 2:
        return None
    mean, spread = abs(statistics.fmean(values)), statistics.stdev(values)
    room, confidence = (margin - mean, 0.90) if mean <= margin else (mean - margin, 1 - 0.05 / metrics)
    for n in range(len(values) + 1, most + 1):
        if t_quantile(confidence, n - 1) * spread / math.sqrt(n) < room:
            return n
    return None
