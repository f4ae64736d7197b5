"""Plots of the RoI operations' result files."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.roi._rows import (
    BACKWARD,
    FORWARD,
    ONE_HOT,
    TORCHVISION,
    Row,
    by_direction,
    group_rows,
    machine_name,
    number,
    select,
    title,
)
from benchmarks.roi._workloads import WORKLOADS
from mrcnn_jax.atomic_io import replacing

MARKS = {TORCHVISION: {"color": "0.25", "marker": "D"}, ONE_HOT: {"color": "0.65", "marker": "s"}}
COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe and Ito: safe for colour-blind
OPERATION = ("operation", "reduction", "samples")


def draw(name: str, content: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws the plots of one result file as PNG; returns their names."""
    rows = [row for row in content["rows"] if "median_ms" in row]
    if not rows:
        return []
    shown = select(rows, batch=1, dtype="float32") or next(iter(group_rows(rows, "batch", "dtype").values()))
    note = f"{machine_name(content)}, {shown[0]['batch']} x {shown[0]['dtype']}"
    plots = {f"{name}_speed.png": _draw_speed(shown, note), f"{name}_times.png": _draw_times(shown, note)}
    plots = {plot: figure for plot, figure in plots.items() if figure is not None}
    for plot, figure in plots.items():
        with replacing(folder / plot) as unfinished:
            figure.savefig(unfinished, dpi=110)
    return list(plots)


def _figure(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_speed(rows: Sequence[Row], note: str) -> Figure | None:
    """Bars: speed of the default implementations relative to torchvision."""
    workloads = [workload for (workload,) in group_rows(rows, "workload")]
    speeds = {}  # by direction, operation and workload
    for (workload, *key), of_operation in group_rows(rows, "workload", *OPERATION).items():
        torchvision = by_direction(select(of_operation, implementation=TORCHVISION))
        for direction, row in by_direction(select(of_operation, is_default=True)).items():
            if direction in torchvision:
                speed = torchvision[direction]["median_ms"] / row["median_ms"]
                speeds.setdefault(direction, {}).setdefault(tuple(key), {})[workload] = speed
    if not speeds:
        return None
    figure = _figure(13, 4.4)
    operations = list(dict.fromkeys(key for of_direction in speeds.values() for key in of_direction))
    width = 0.8 / len(operations)
    axes = figure.subplots(1, len(speeds), sharey=True, squeeze=False)[0]
    for axis, (direction, own) in zip(axes, speeds.items(), strict=True):
        shown = [workload for workload in workloads if any(workload in cells for cells in own.values())]
        for index, key in enumerate(operations):
            cells, shift = own.get(key, {}), (index - (len(operations) - 1) / 2) * width
            color = COLORS[index % len(COLORS)]
            places = [shown.index(workload) + shift for workload in cells]
            bars = axis.bar(places, list(cells.values()), 0.92 * width, color=color, label=title(key))
            axis.bar_label(
                bars, [f"{number(speed, 2)}x" for speed in cells.values()], fontsize="small", padding=2
            )
        axis.axhline(1, color="0.25", linewidth=1, linestyle="--")
        axis.set_xticks(range(len(shown)), [textwrap.fill(workload, 13) for workload in shown])
        axis.set_title(
            "forward" if direction == FORWARD else "forward and features' gradient", fontsize="medium"
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("speed relative to torchvision")
    figure.suptitle(f"Default implementations relative to torchvision (dashed): {note}", fontsize="medium")
    _legend(figure, axes[0], len(operations))
    return figure


def _draw_times(rows: Sequence[Row], note: str) -> Figure:
    """Points: the time of every implementation of every operation, on a logarithmic axis."""
    workloads = [workload for (workload,) in group_rows(rows, "workload")]
    directions = [direction for direction in (FORWARD, BACKWARD) if select(rows, direction=direction)]
    operations = list(group_rows(rows, *OPERATION))
    names = sorted((name for (name,) in group_rows(rows, "implementation")), key=lambda name: name in MARKS)
    figure = _figure(2.4 + 2.3 * len(workloads), 1.3 + len(directions) * (0.7 + 0.38 * len(operations)))
    grid = figure.subplots(len(directions), len(workloads), sharex=True, sharey=True, squeeze=False)
    for line, direction in zip(grid, directions, strict=True):
        line[0].set_ylabel("forward" if direction == FORWARD else "with gradient")
        for axis, workload in zip(line, workloads, strict=True):
            here = select(rows, direction=direction, workload=workload)
            for index, name in enumerate(names):
                shift = 0.5 * (
                    (index + 0.5) / len(names) - 0.5
                )  # so that points of equal time do not overlap
                own = select(here, implementation=name)
                places = [operations.index(tuple(row[field] for field in OPERATION)) + shift for row in own]
                style = MARKS.get(name, {"color": COLORS[index % len(COLORS)], "marker": "o"})
                axis.plot(
                    [row["median_ms"] for row in own], places, label=name, linestyle="", markersize=6.5,
                    markeredgecolor="white", markeredgewidth=0.6, **style,
                )  # fmt: skip
            if not here:
                training = workload not in WORKLOADS or WORKLOADS[workload].training
                reason = "not measured" if training else "inference only"
                style = {"ha": "center", "va": "center", "color": "0.5", "fontsize": "small"}
                axis.text(0.5, 0.5, reason, transform=axis.transAxes, **style)
            axis.grid(axis="x", alpha=0.3)
            axis.grid(axis="y", alpha=0.15)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
    first = grid[0][0]
    first.set(xscale="log", yticks=range(len(operations)), yticklabels=map(title, operations))
    first.set(ylim=(len(operations) - 0.4, -0.6))
    first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    first.xaxis.set_minor_formatter(NullFormatter())
    for top, bottom, workload in zip(grid[0], grid[-1], workloads, strict=True):
        top.set_title(workload, fontsize="medium")
        bottom.set_xlabel("milliseconds")
    figure.suptitle(f"Time of each implementation: {note}", fontsize="medium")
    _legend(figure, first, len(names))
    return figure


def _legend(figure, axis, columns):
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, ncols=columns, loc="outside lower center")
