"""Plots of the RoI operations' result files."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks._figures import COLORS, new_figure, style
from benchmarks._markdown import machine_name, number
from benchmarks.roi import _rows
from benchmarks.roi._workloads import BY_NAME

MARKS = {"torchvision": {"color": "0.25", "marker": "D"}, "one-hot einsum": {"color": "0.65", "marker": "s"}}


def draw(name: str, content: Mapping[str, Any]) -> dict[str, Figure]:
    """Draws the plots of one result file, of one image in float32, by their names."""
    rows = _rows.select(_rows.timed(content), batch=1, dtype="float32")
    note = f"{machine_name(content['machine'])}, 1 x float32"
    figures = {"speed": _draw_speed, "times": _draw_times} if rows else {}
    drawn = {f"{name}_{suffix}": draw_rows(rows, note) for suffix, draw_rows in figures.items()}
    return {name: figure for name, figure in drawn.items() if figure}


def _draw_speed(rows: Sequence[_rows.Row], note: str) -> Figure | None:
    """Draws bars: speed of the default implementations relative to torchvision."""
    speeds = {}  # by direction, operation and workload
    for (workload, *key), own in _rows.group_by(rows, "workload", *_rows.OPERATION).items():
        torchvision = _rows.by_direction(own, implementation=_rows.TORCHVISION)
        for direction, row in _rows.by_direction(own, is_default=True).items():
            if direction in torchvision:
                speed = torchvision[direction]["median_ms"] / row["median_ms"]
                speeds.setdefault(direction, {}).setdefault(tuple(key), {})[workload] = speed
    if not speeds:
        return None
    figure = new_figure(13, 4.4, f"Default implementations relative to torchvision (dashed): {note}")
    operations = list(dict.fromkeys(key for of_direction in speeds.values() for key in of_direction))
    width = 0.8 / len(operations)
    axes = figure.subplots(1, len(speeds), sharey=True, squeeze=False)[0]
    for axis, (direction, own) in zip(axes, speeds.items(), strict=True):
        workloads = list(dict.fromkeys(workload for cells in own.values() for workload in cells))
        for index, key in enumerate(operations):
            cells, shift = own.get(key, {}), (index - (len(operations) - 1) / 2) * width
            places = [workloads.index(workload) + shift for workload in cells]
            look = {"color": COLORS[index % len(COLORS)], "label": _rows.title(key)}
            bars = axis.bar(places, list(cells.values()), 0.92 * width, **look)
            labels = [f"{number(speed, 2)}x" for speed in cells.values()]
            axis.bar_label(bars, labels, fontsize="small", padding=2)
        axis.axhline(1, color="0.25", linewidth=1, linestyle="--")
        axis.set_xticks(range(len(workloads)), [textwrap.fill(workload, 13) for workload in workloads])
        way = "forward" if direction == _rows.FORWARD else "forward and features' gradient"
        axis.set_title(way, fontsize="medium")
        axis.tick_params(axis="x", length=0)
        style(axis, "y")
    axes[0].set_ylabel("speed relative to torchvision")
    _legend(figure, axes[0])
    return figure


def _draw_times(rows: Sequence[_rows.Row], note: str) -> Figure:
    """Draws points: the time of every implementation of every operation, on a logarithmic axis."""
    fields = "workload", "direction", "implementation"
    workloads, directions, names = ([value for (value,) in _rows.group_by(rows, field)] for field in fields)
    names.sort(key=lambda name: name in MARKS)
    operations = list(_rows.group_by(rows, *_rows.OPERATION))
    size = 2.4 + 2.3 * len(workloads), 1.3 + len(directions) * (0.7 + 0.38 * len(operations))
    figure = new_figure(*size, f"Time of each implementation: {note}")
    grid = figure.subplots(len(directions), len(workloads), sharex=True, sharey=True, squeeze=False)
    for line, direction in zip(grid, directions, strict=True):
        line[0].set_ylabel("forward" if direction == _rows.FORWARD else "with gradient")
        for axis, workload in zip(line, workloads, strict=True):
            here = _rows.select(rows, direction=direction, workload=workload)
            for index, name in enumerate(names):
                own = _rows.select(here, implementation=name)
                shift = 0.5 * ((index + 0.5) / len(names) - 0.5)  # points of equal time do not overlap
                kinds = (tuple(row[field] for field in _rows.OPERATION) for row in own)
                places = [operations.index(kind) + shift for kind in kinds]
                look = MARKS.get(name, {"color": COLORS[index % len(COLORS)], "marker": "o"})
                look |= {"linestyle": "", "markersize": 6.5, "markeredgecolor": "white"}
                times = [row["median_ms"] for row in own]
                axis.plot(times, places, label=name, markeredgewidth=0.6, **look)
            if not here:
                reason = "not measured" if direction in BY_NAME[workload].directions else "inference only"
                look = {"ha": "center", "va": "center", "color": "0.5", "fontsize": "small"}
                axis.text(0.5, 0.5, reason, transform=axis.transAxes, **look)
            axis.grid(axis="y", alpha=0.15)
            axis.tick_params(axis="y", length=0)
            style(axis, "x")
    first = grid[0][0]
    first.set(xscale="log", yticks=range(len(operations)), yticklabels=map(_rows.title, operations))
    first.set(ylim=(len(operations) - 0.4, -0.6))
    first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    first.xaxis.set_minor_formatter(NullFormatter())
    for top, bottom, workload in zip(grid[0], grid[-1], workloads, strict=True):
        top.set_title(workload, fontsize="medium")
        bottom.set_xlabel("milliseconds")
    _legend(figure, first)
    return figure


def _legend(figure, axis):
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center")
