"""Plots of training runs as PNG: losses, learning rate and evaluations over the steps."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter


def plot_curves(
    history: Sequence[Mapping[str, Any]], path: str | Path, evaluations: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes the figure of ``curves`` to a file."""
    _save_figure(curves(history, evaluations), path)


def curves(
    history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Plots a training run: losses above the learning rate, and evaluations beside them if there are any.

    Args:
        history: {"step": ..., "loss": ..., "loss_mask": ..., "learning_rate": ...}; each key that starts with
            "loss" is a smoothed line over the faint raw values.
        evaluations: {"step": ..., "segm/AP": ...} in percent, and "validation_loss", which is drawn with the
            losses; None for undefined metrics. Whatever else is no number is left out, here and in
            ``history``.
    """
    metrics = [name for name in _keys(evaluations, "") if not name.startswith("validation_loss")]
    figure = Figure(figsize=(13 if metrics else 7.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2 if metrics else 1, height_ratios=(4, 1))
    losses = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=losses)
    for name in _keys(history, "loss"):
        steps, values = _series(history, name)
        (line,) = losses.plot(steps, _smooth(values), label=name, linewidth=2.2 if name == "loss" else 1.3)
        losses.plot(steps, values, color=line.get_color(), alpha=0.18, linewidth=0.8)
    if "validation_loss" in _keys(evaluations, ""):
        values = _series(evaluations, "validation_loss")
        losses.plot(*values, color="0.1", marker="o", markersize=3.5, label="validation_loss")
    losses.set_ylabel("loss")
    if any(value > 0 for line in losses.lines for value in line.get_ydata()):
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
    losses.tick_params(labelbottom=False)
    rate.plot(*_series(history, "learning_rate"), color="0.3", linewidth=1.3)
    rate.set(xlabel="step", ylabel="learning rate")
    axes = [losses, rate]
    if metrics:
        average_precision = figure.add_subplot(grid[:, 1], sharex=losses)
        for name in metrics:
            average_precision.plot(*_series(evaluations, name), marker="o", markersize=3.5, label=name)
        average_precision.set(xlabel="step", ylabel="percent")
        average_precision.set_ylim(bottom=0)
        axes.append(average_precision)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def plot_comparison(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Plots loss, box AP and mask AP of several runs over their steps.

    Args:
        runs: by name, records as those of ``plot_curves``, of both kinds.
        path: file to write.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    labels = {"loss": "loss", "bbox/AP": "box AP, percent", "segm/AP": "mask AP, percent"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for name, records in runs.items():
            steps, values = _series(records, key)
            if key != "loss":
                axis.plot(steps, values, marker="o", markersize=3.5)
                continue
            (line,) = axis.plot(steps, _smooth(values, 8), label=name)
            axis.plot(steps, values, color=line.get_color(), alpha=0.18, linewidth=0.8)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if key != "loss":
            axis.set_ylim(bottom=0)  # else a hundredth of a percent looks like a fall
    axes[0].set_yscale("log")
    for bound in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        bound("{x:g}")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=len(runs), loc="outside upper center")
    _save_figure(figure, path)


def _save_figure(figure: Figure, path: str | Path) -> None:
    file, encoded = epath.Path(path), io.BytesIO()  # Matplotlib cannot write to buckets
    figure.savefig(encoded, dpi=110, format=file.suffix[1:])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded.getvalue())


def _keys(records: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """Returns the keys that have values to plot, in order of appearance."""
    names = dict.fromkeys(name for record in records for name, value in record.items() if _is_number(value))
    return [name for name in names if name.startswith(prefix) and name != "step"]


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    known = [(record["step"], float(record[name])) for record in records
             if _is_number(record.get("step")) and _is_number(record.get(name))]  # fmt: skip
    return [step for step, _ in known], [value for _, value in known]


def _is_number(value: Any) -> bool:
    """Returns whether a value can be plotted; infinities and NaN leave gaps."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 10**300)


def _smooth(values: Sequence[float], parts: int = 50) -> list[float]:
    """Computes an exponential moving average over about 1/parts of the run, skipping non-finite values."""
    keep = 1 - 1 / max(1.0, min(100.0, len(values) / parts))
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight if weight else np.nan)
    return smoothed
