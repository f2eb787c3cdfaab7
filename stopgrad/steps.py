"""The public name of :mod:`stopgrad.audits.steps`."""

from stopgrad.audits.steps import Finding as Finding
from stopgrad.audits.steps import StepWatch as StepWatch
