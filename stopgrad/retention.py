"""The public name of :mod:`stopgrad.audits.retention`."""

from stopgrad.audits.retention import GraphRetained as GraphRetained
from stopgrad.audits.retention import GraphSize as GraphSize
from stopgrad.audits.retention import Kept as Kept
from stopgrad.audits.retention import SavedDataCorrupted as SavedDataCorrupted
from stopgrad.audits.retention import graph_size as graph_size
from stopgrad.audits.retention import growth as growth
from stopgrad.audits.retention import guard_saved as guard_saved
from stopgrad.audits.retention import kept_graphs as kept_graphs
