"""The public name of :mod:`stopgrad.flow.pictures`."""

from stopgrad.flow.pictures import html_page as html_page
from stopgrad.flow.pictures import matrix_figure as matrix_figure
from stopgrad.flow.pictures import matrix_svg as matrix_svg
