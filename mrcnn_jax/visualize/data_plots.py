"""Plots of a data set's objects: sizes, aspect ratios, objects per image, classes, overlap with anchors."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrcnn_jax.typing import Float, Int
from mrcnn_jax.visualize.analysis_plots import BLUE, GREY, ORANGE, new_figure, with_legend
from mrcnn_jax.visualize.text import legible

MAX_CLASSES = 30
"""Classes that are drawn, those with the most objects."""
_COLORS = (BLUE, ORANGE, "#4c9a5b", "#8a5fa8")


def plot_shares(
    values: Mapping[str, Float[np.ndarray, "_n"]], label: str, bounds: tuple[float, float],
    marks: Sequence[float] = (),
) -> Figure:  # fmt: skip
    """Plots the distribution of positive values of each split over a logarithmic axis, in percent.

    Args:
        values: of the objects of each split.
        label: of the axis.
        bounds: smallest and largest value shown; those beyond are counted at the ends.
        marks: values with a dotted line.
    """
    figure, axes = new_figure(label, "percent of objects")
    edges = np.geomspace(*bounds, 41)
    for color, (name, numbers) in zip(_COLORS, values.items(), strict=False):
        counts, _ = np.histogram(np.clip(numbers, *bounds), edges)
        axes.stairs(100 * counts / max(1, len(numbers)), edges, color=color, label=name, linewidth=1.4)
    for mark in marks:
        axes.axvline(mark, color=GREY, linestyle=":", linewidth=1)
    _logarithmic(axes)
    return with_legend(figure, axes)


def plot_counts(counts: Mapping[str, Int[np.ndarray, "_n"]], limit: int) -> Figure:
    """Plots the share of the images of each split that hold at least n objects, and a limit of n."""
    figure, axes = new_figure("objects", "percent of images with at least as many")
    for color, (name, numbers) in zip(_COLORS, counts.items(), strict=False):
        steps = np.arange(max(2, int(numbers.max(initial=0)) + 2))
        below = np.searchsorted(np.sort(numbers), steps)
        axes.plot(steps, 100 * (1 - below / max(1, len(numbers))), color=color, label=name)
    axes.axvline(limit, color=GREY, linestyle=":", linewidth=1, label=f"data.max_objects {limit}")
    axes.set_ylim(0, 102)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:g}")
    return with_legend(figure, axes)


def plot_classes(names: Sequence[str], objects: Int[np.ndarray, "K"]) -> Figure:
    """Plots the number of objects of the classes that have most, as bars."""
    order = np.argsort(-objects, kind="stable")[:MAX_CLASSES]
    figure, axes = new_figure("objects", "")
    figure.set_figheight(max(1.5, 0.8 + 0.19 * len(order)))
    bars = axes.barh(range(len(order)), objects[order], color=BLUE)
    axes.bar_label(bars, [f"{count:,}" for count in objects[order]], padding=3, fontsize="x-small")
    labels = [legible(names[index], 24) for index in order]
    axes.set_yticks(range(len(order)), labels, fontsize="x-small", parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    return figure


def plot_overlaps(sides: Float[np.ndarray, "M"], best: Float[np.ndarray, "M"]) -> Figure:
    """Plots the best IoU with an anchor over the size of objects: median, and the middle 80 percent."""
    figure, axes = new_figure("side after the resize, pixels", "best IoU with an anchor")
    edges = np.geomspace(2, 1024, 28)
    place, rows = np.digitize(sides, edges), []
    for index in range(1, len(edges)):
        if len(chosen := best[place == index]):
            rows.append([np.sqrt(edges[index - 1] * edges[index]), *np.quantile(chosen, (0.1, 0.5, 0.9))])
    if rows:
        middles, low, median, high = np.transpose(rows)
        axes.fill_between(middles, low, high, color=BLUE, alpha=0.2, label="middle 80 percent")
        axes.plot(middles, median, color=BLUE, marker="o", markersize=3, label="median")
    for bound in (0.5, 0.7):
        axes.axhline(bound, color=GREY, linestyle=":", linewidth=1)
    axes.set_ylim(0, 1.02)
    _logarithmic(axes)
    return with_legend(figure, axes)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
