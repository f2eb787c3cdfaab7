"""The public name of :mod:`stopgrad.flow.drawing`."""

from stopgrad.flow.drawing import flow_svg as flow_svg
