"""The public name of :mod:`stopgrad.audits.freeze`."""

from stopgrad.audits.freeze import Drift as Drift
from stopgrad.audits.freeze import FreezeWatch as FreezeWatch
from stopgrad.audits.freeze import FrozenDrift as FrozenDrift
from stopgrad.audits.freeze import Part as Part
from stopgrad.audits.freeze import frozen_modules as frozen_modules
from stopgrad.audits.freeze import train_eval_gap as train_eval_gap
