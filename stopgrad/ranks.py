"""The public name of :mod:`stopgrad.audits.ranks`."""

from stopgrad.audits.ranks import Difference as Difference
from stopgrad.audits.ranks import RankDivergence as RankDivergence
from stopgrad.audits.ranks import first_difference as first_difference
