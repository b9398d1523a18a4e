"""Plots: SVG pictures of what a run has measured, drawn from numbers alone; a record's text never comes here.

matplotlib, which takes a second to load, is imported when the first picture is drawn.
"""

from core.plots.progress import curves, looks
from core.plots.results import distributions, series

__all__ = ["curves", "distributions", "looks", "series"]
