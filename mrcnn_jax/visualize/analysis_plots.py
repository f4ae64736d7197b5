"""Plots of an evaluation's analysis: precision and recall, scores, errors, sizes, calibration, confusion."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mrcnn_jax.typing import Int
from mrcnn_jax.visualize.text import legible

MAX_CLASSES = 25
"""Classes of a confusion matrix that is drawn."""
BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "0.55"
"""Colours of all plots of reports."""
_SIZE = 5.2, 3.5


def encode_png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    encoded = io.BytesIO()
    figure.savefig(encoded, dpi=110, format="png", metadata={"Software": None})
    return encoded.getvalue()


def plot_precision_recall(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Plots precision over the recalls 0, 0.01, ..., 1, a line for each name."""
    figure, axes = new_figure("recall", "precision")
    for name, values in curves.items():
        axes.plot(np.linspace(0, 1, len(values)), values, label=f"{name}: AP {100 * np.mean(values):.1f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return with_legend(figure, axes)


def plot_scores(
    by_score: Mapping[str, Sequence[float | None]], best: Mapping[str, float] | None,
    class_f1: Mapping[str, Sequence[float]],
) -> Figure:  # fmt: skip
    """Plots F1, precision and recall over the minimum score, F1 of classes faintly, and the best score.

    Args:
        by_score: "scores", and "f1", "precision", "recall" at each.
        best: "scores" and "f1" of the best one; None marks none.
        class_f1: F1 at the same scores of each class.
    """
    figure, axes = new_figure("minimum score", "")
    scores = by_score["scores"]
    for values in list(class_f1.values())[:100] if len(class_f1) > 1 else ():
        axes.plot(scores, values, color=GREY, alpha=0.18, linewidth=0.7)
    for name, color in (("precision", BLUE), ("recall", ORANGE), ("f1", "black")):
        values = np.array(by_score[name], float)
        axes.plot(scores, values, color=color, label="F1" if name == "f1" else name)
    if best:
        axes.axvline(best["scores"], color="black", linestyle=":", linewidth=1)
        axes.plot(best["scores"], best["f1"], "o", color="black", label=f"best: {best['scores']:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return with_legend(figure, axes)


def plot_errors(errors: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plots the gain in AP50 from correcting each kind of error ({name: {"gain", "count"}}) as bars."""
    figure, axes = new_figure("AP50 gained if all were corrected", "")
    names, gains = list(errors), [errors[name]["gain"] or 0.0 for name in errors]
    colors = [GREY if name.startswith("false") else BLUE for name in names]  # all of TIDE's kinds together
    bars = axes.barh([name.replace("_", " ") for name in names], gains, color=colors)
    labels = [f"{gain:.1f}  ({errors[name]['count']:,})" for name, gain in zip(names, gains, strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(min(0, *gains), 1.3 * max(1.0, *gains))
    return figure


def plot_sizes(sizes: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots AP by the size of objects ("size", "from", "to", "AP", "objects") as bars."""
    figure, axes = new_figure("", "AP")
    labels = []
    for row in sizes:
        bounds = f"{row['from']:.0f} px up" if row["to"] is None else f"{row['from']:.0f}–{row['to']:.0f} px"
        name = row["size"].replace(" ", "\n")
        labels.append(f"{name}\n{bounds}\n{row['objects']:,} objects")
    colors = [ORANGE if "quarter" in row["size"] else BLUE for row in sizes]
    bars = axes.bar(range(len(sizes)), [row["AP"] or 0.0 for row in sizes], color=colors)
    values = ["–" if row["AP"] is None else f"{row['AP']:.1f}" for row in sizes]
    axes.bar_label(bars, values, fontsize="small")
    axes.set_xticks(range(len(sizes)), labels, fontsize=6.5)
    axes.margins(y=0.12)
    return figure


def plot_calibration(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the share of correct detections over the score, and how many detections there are below it.

    Args:
        bins: {"from", "to", "detections", "score", "correct"}, the last two None in an empty bin.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _style(axes, "", "share that is correct")
    _style(below, "score", "detections")
    filled = [row for row in bins if row["detections"]]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
    points = [[row[key] for row in filled] for key in ("score", "correct")]
    axes.plot(*points, marker="o", color=BLUE, label="detections")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    below.bar([row["from"] for row in bins], [row["detections"] for row in bins],
              [row["to"] - row["from"] for row in bins], align="edge", color=BLUE, alpha=0.6)  # fmt: skip
    if filled:
        below.set_yscale("log")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        below.yaxis.set_major_formatter("{x:,.0f}")
        below.yaxis.set_minor_formatter(NullFormatter())
    return with_legend(figure, axes)


def plot_confusion(classes: Sequence[str], matrix: Int[np.ndarray, "K1 K1"]) -> Figure:
    """Plots a confusion matrix as shares of each row, with the classes that are confused most.

    Args:
        classes: names of rows (annotated) and columns (detected), the last of which is the background.
        matrix: numbers of objects.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    mistakes = (wrong.sum(axis=0) + wrong.sum(axis=1))[:-1]
    chosen = [*np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES]), len(classes) - 1]
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(chosen, chosen)]
    names = [legible(classes[index], 22) for index in chosen]
    side = max(3.6, 1.8 + 0.3 * len(chosen))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(chosen))
    axes.set_xticks(places, names, rotation=90, fontsize="small", parse_math=False)
    axes.set_yticks(places, names, fontsize="small", parse_math=False)
    axes.set(xlabel="detected as", ylabel="annotated")
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if len(chosen) > 6 else f"{100 * share:.0f} %"
        axes.text(column, row, text, ha="center", va="center", fontsize=7,
                  color="white" if share > 0.5 else "black")  # fmt: skip
    return figure


def new_figure(x: str, y: str) -> tuple[Figure, Axes]:
    """Returns a figure with one pair of axes, labelled."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes, x, y)
    return figure, axes


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """Adds a legend if anything has a label, and returns the figure."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return figure
