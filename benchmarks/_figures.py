"""Figures of result pages, in one style."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's, which the colour-blind can tell apart."""


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Makes a figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    return figure


def style(axis: Axes, grid: str = "both") -> None:
    """Draws a light grid behind the data, and no frame."""
    axis.grid(axis=grid, alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
