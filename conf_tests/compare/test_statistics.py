"""What may be said from paired seeds: t intervals against scipy's, and how often the conclusions are wrong."""

import math
import random

import pytest
from scipy import stats

from stopgrad.compare.statistics import difference, interval, t_probability, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.975, 0.999])
def test_quantiles_are_students(freedom, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert t_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)
    assert t_probability(expected, freedom) == pytest.approx(confidence, rel=1e-9)


def test_interval_is_scipys():
    values = [1.0, 2.5, 0.3, 4.0]
    expected = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert interval(values, 0.95) == pytest.approx(expected)


def test_one_seed_tells_nothing():
    assert difference([1e9], margin=0.1).conclusion == "cannot_tell"
    assert difference([0.0], margin=0.1).conclusion == "cannot_tell"


@pytest.mark.parametrize(
    ("values", "margin", "conclusion"),
    [
        ([5.0, 5.1, 4.9], 1.0, "different"),
        ([-5.0, -5.1, -4.9], 1.0, "different"),
        ([0.01, -0.02, 0.0], 1.0, "same"),
        ([0.9, 0.8, 1.3], 1.0, "cannot_tell"),
        ([3.0, -2.0, 1.0], 1.0, "cannot_tell"),  # an effect smaller than its spread
        ([5.0, 5.0, 5.0], 1.0, "different"),  # of a recipe without chance
        ([0.0, 0.0, 0.0], 0.0, "same"),
    ],
)
def test_conclusions(values, margin, conclusion):
    assert difference(values, margin).conclusion == conclusion


def test_more_metrics_ask_for_more():
    values = [3.0, 3.6, 2.2]
    assert difference(values, 1.0).conclusion == "different"
    assert difference(values, 1.0, metrics=4).conclusion == "cannot_tell"
    assert difference([0.1, 0.2, 0.1], 1.0, metrics=4).low90 == difference([0.1, 0.2, 0.1], 1.0).low90


def test_the_number_of_seeds_it_asks_for_tells():
    rng = random.Random(0)
    values = [2.0 + rng.gauss(0, 1) for _ in range(3)]
    needed = difference(values, 0.5).seeds_needed
    assert needed is not None
    mean, spread = sum(values) / 3, stats.tstd(values)
    assert abs(mean) - t_quantile(0.95, needed - 1) * spread / math.sqrt(needed) > 0.5
    assert abs(mean) - t_quantile(0.95, needed - 2) * spread / math.sqrt(needed - 1) <= 0.5


@pytest.mark.parametrize(("mean", "wrong"), [(1.0, "different"), (1.0, "same")])
def test_at_the_margin_each_conclusion_is_wrong_in_a_twentieth_at_most(mean, wrong):
    """An effect just as large as the margin: neither different nor same should be said more often than 5%."""
    rng = random.Random(1)
    said = [difference([rng.gauss(mean, 0.3) for _ in range(3)], 1.0).conclusion for _ in range(4000)]
    assert said.count(wrong) / len(said) < 0.06
    assert said.count(wrong) > 0
